"""Prefect as people have it: a server, a worker, the deployments of prefect.yaml, and its UI in a browser."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import needs_chromium
from tests.flows.conftest import Office
from tests.patience import PATIENCE_S

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.slow, needs_chromium]


class Ui:
    """Prefect's UI in a browser, as a person uses it."""

    def __init__(self, page: playwright.Page, office: Office) -> None:
        self.page = page
        self._office = office

    def open_form(self, deployment: str) -> None:
        self.page.goto(
            f"{self._office.prefect.url}/deployments/deployment/{self._office.deployment(deployment)}/run"
        )
        self.page.get_by_text("Where the prompts come from").wait_for()

    def fill(self, title: str, value: str, kind: str | None = None) -> None:
        """Fill in a field by its title; an optional one needs its ``kind`` chosen first."""
        label = self.page.locator(".schema-form-property__label", has_text=re.compile(f"^{re.escape(title)}"))
        field = self.page.locator(".schema-form-property", has=label).last
        if kind is not None:
            field.get_by_role("button", name=kind, exact=True).click()
        field.locator("textarea, input").last.fill(value)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def submit(self) -> None:
        """Submit a form until it closes: as a person does whose server was busy."""
        button = self.page.get_by_role("button", name="Submit", exact=True)
        for _ in range(10):
            button.click()
            try:
                button.wait_for(state="hidden", timeout=1000 * PATIENCE_S / 10)
            except playwright.TimeoutError:
                self.shoot("not-submitted")
            else:
                return
        raise AssertionError("the form did not close; the last thing seen is not-submitted.png")

    def open_run(self, flow_run_id: str, tab: str | None = None) -> None:
        self.page.goto(f"{self._office.prefect.url}/runs/flow-run/{flow_run_id}")
        if tab is not None:
            self.page.get_by_text(tab, exact=True).first.click()

    def open_artifact(self, flow_run_id: str, name: str) -> None:
        self.open_run(flow_run_id, "Artifacts")
        self.page.get_by_text(name, exact=True).click()
        self.page.wait_for_url(re.compile("/artifacts/artifact/"))

    def sees(self, text: str | re.Pattern[str]) -> None:
        self.page.get_by_text(text).first.wait_for()

    def progress(self) -> float:
        """What the progress artifact's page shows once it is loaded anew, in per cent."""
        self.page.reload()
        text = self.page.get_by_text(re.compile(r"^\s*Progress: ")).first.inner_text()
        return float(text.strip().removeprefix("Progress: ").removesuffix("%"))

    def shoot(self, name: str) -> None:
        folder = self._office.folder / "screenshots"
        self.page.wait_for_load_state("networkidle")
        self.page.screenshot(path=folder / f"{name}.png", animations="disabled")  # not while a page fades in


@pytest.fixture
def ui(browser: playwright.Browser, office: Office) -> Iterator[Ui]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    yield Ui(page, office)
    context.close()


def test_the_nightly_refresh_is_scheduled(office: Office, ui: Ui) -> None:
    deployment = office.deployment("refresh-catalog/nightly")
    office.wait("no worker", lambda: office.call("GET", f"/deployments/{deployment}")["status"] == "READY")
    ui.page.goto(f"{office.prefect.url}/deployments/deployment/{deployment}?tab=Upcoming")
    ui.sees("At 02:30 AM every day")
    ui.sees("nightly__automation_1")
    ui.sees("auto-scheduled")
    ui.shoot("nightly")


def test_a_run_is_started_from_the_form_and_watched_to_its_report(office: Office, ui: Ui) -> None:
    office.set_latency(1.5)  # so long that the run does not end before its progress was seen
    known = [run["id"] for run in office.runs_of("generate-catalog/on-demand")]

    def new_runs() -> list[dict[str, Any]]:
        return [run for run in office.runs_of("generate-catalog/on-demand") if run["id"] not in known]

    ui.open_form("generate-catalog/on-demand")
    ui.fill("Path", "products.parquet")
    ui.shoot("form")
    ui.fill("Path", office.catalog("autumn", 200))
    ui.fill("Width", "0")
    ui.fill("Run ID", "autumn", "str")
    ui.press("Submit")
    ui.sees("Validation failed for field 'picture.width'")
    ui.shoot("refused")
    assert new_runs() == []

    ui.fill("Width", "256")
    ui.submit()
    (started,) = office.wait("no run", new_runs)
    flow_run_id = started["id"]
    ui.open_run(flow_run_id, "Artifacts")
    ui.sees("Running")
    ui.sees("imagemill-progress")
    ui.open_artifact(flow_run_id, "imagemill-progress")
    office.wait("no progress", lambda: 0 < ui.progress() < 100)
    office.set_latency(0)

    ended = office.wait_for(flow_run_id, "Completed", "Failed", "Crashed")
    ui.open_run(flow_run_id)
    ui.sees("Completed")
    message = ended["state"]["message"]
    assert message.startswith("Run autumn: 200 of 200 images are done (200 generated)")
    assert "; it cost $" in message
    ui.shoot("run")
    ui.open_artifact(flow_run_id, "imagemill-headline")
    ui.sees("Run autumn")
    ui.sees("of 200")
    ui.shoot("headline")
    ui.open_artifact(flow_run_id, "imagemill-metrics")
    ui.sees("total cost")
    ui.shoot("metrics")
    ui.open_artifact(flow_run_id, "imagemill-report")
    with ui.page.expect_popup() as opened:
        ui.page.get_by_role("link", name="Open the report of run autumn").click()
    opened.value.wait_for_load_state()
    assert opened.value.title() == "Done \u00b7 run autumn \u00b7 imagemill"


def test_a_run_cancelled_in_the_ui_goes_on_under_its_run_id_and_pays_nothing_twice(
    office: Office, ui: Ui
) -> None:
    office.set_latency(0.5)
    path = office.catalog("cancelled", 150)
    paid_before = office.emulated.bill()["images"]
    place = office.place_of("cancelled")
    work = {
        "catalog": {"path": path},
        "output": place.settings(),
        "execution": {"run_id": "cancelled", "shard_size": 50, "workers": 2},
    }
    flow_run_id = office.start("refresh-catalog/nightly", **work)
    ui.open_run(flow_run_id)
    ui.sees("Running")
    office.wait("nothing paid", lambda: office.emulated.bill()["images"] > paid_before + 10)
    ui.press("Cancel")
    ui.press("Confirm")
    ui.sees("Cancelled")
    office.wait_for(flow_run_id, "Cancelled")
    ui.open_artifact(flow_run_id, "imagemill-headline")
    ui.sees("Stopped early")
    ui.shoot("cancelled")
    task_runs = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    states = {run["state_name"] for run in office.call("POST", "/task_runs/filter", **task_runs)}
    assert states == {"Completed"}
    assert "refresh.lease" not in place.objects()
    assert office.emulated.bill()["images"] < paid_before + 150

    office.set_latency(0)
    again = office.start("refresh-catalog/nightly", **work)
    ended = office.wait_for(again, "Completed", "Failed", "Crashed")
    assert "150 of 150 images are done" in ended["state"]["message"]
    of_run = [
        job for job in office.emulated.bill()["by_key"].values() if job["prompt"].startswith("cancelled")
    ]
    assert (len(of_run), {job["count"] for job in of_run}) == (150, {1})
    assert office.emulated.bill()["images"] == paid_before + 150


def test_a_run_that_waits_for_approval_goes_on_when_it_is_resumed_in_the_ui(office: Office, ui: Ui) -> None:
    office.set_latency(0)
    paid_before = office.emulated.bill()["images"]
    flow_run_id = office.start(
        "generate-catalog/on-demand",
        catalog={"path": office.catalog("dear", 200)},
        output=office.place_of("dear").settings(),
        limits={"approve_above_usd": 0.5},
    )
    waiting = office.wait_for(flow_run_id, "Suspended")
    assert office.emulated.bill()["images"] == paid_before + 12
    # Nothing is held: the output is freed, and the process ends, whose id the worker notes.
    office.wait("the output is held", lambda: "refresh.lease" not in office.place_of("dear").objects())
    pid = int(waiting["infrastructure_pid"].rpartition(":")[2])
    office.wait("the process waits as well", lambda: not Path(f"/proc/{pid}").exists())
    ui.open_run(flow_run_id)
    ui.press("Resume")
    ui.sees("200 images for about $0.60")
    ui.sees("Look at 12 pictures of it")
    ui.shoot("approval")
    ui.submit()
    ended = office.wait_for(flow_run_id, "Completed", "Failed")
    assert ended["infrastructure_pid"] != waiting["infrastructure_pid"]  # the worker started a new one
    assert office.emulated.bill()["images"] == paid_before + 200
    runs = {name.split("/")[1] for name in office.place_of("dear").objects() if name.startswith("runs/")}
    assert len(runs) == 1


def test_a_run_that_fails_says_why(office: Office, ui: Ui) -> None:
    flow_run_id = office.start("generate-catalog/on-demand", catalog={"path": "nowhere.parquet"})
    ui.open_run(flow_run_id)
    ui.sees("Failed")
    ui.open_run(flow_run_id, "Details")
    ui.sees("The catalog 'nowhere.parquet' does not exist.")


def test_an_uploaded_catalog_is_refreshed_and_an_upload_meanwhile_is_not_lost(office: Office) -> None:
    office.set_latency(0.5)
    known = {run["id"] for run in office.runs_of("refresh-catalog/nightly")}
    path = office.catalog("uploaded", 60)

    def upload(**payload: str) -> str:
        event = {
            "id": str(uuid.uuid4()),
            "event": "catalog.uploaded",
            "resource": {"prefect.resource.id": "catalogs.catalog"},
            "payload": payload,
            "occurred": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}Z",
        }
        answer = httpx.post(f"{office.prefect.api}/events", content=json.dumps([event]), timeout=30)
        answer.raise_for_status()

        def started() -> list[str]:
            return [run["id"] for run in office.runs_of("refresh-catalog/nightly") if run["id"] not in known]

        (flow_run_id,) = office.wait("the event started nothing", started)
        known.add(flow_run_id)
        return str(flow_run_id)

    first = upload(path=path)
    assert office.flow_run(first)["parameters"]["path"] == path
    office.wait_for(first, "Running")
    second = upload(path=path)
    assert office.wait_for(first, "Completed", "Failed")["state_name"] == "Completed"
    assert office.wait_for(second, "Completed", "Failed")["state_name"] == "Completed"
    manifest = office.place_of("nightly").table("manifest.parquet")
    assert [row["status"] for row in manifest] == ["done"] * 60
    of_its_own = office.flow_run(upload())
    assert of_its_own["parameters"]["path"] == ""
