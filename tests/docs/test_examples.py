"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import queue
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Completed, Crashed, Running

from imagemill.blocks.loading import image_api
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.build_dashboard import build_dashboard
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.settings import ApiSettings
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place
from tests.patience import PATIENCE_S
from tests.reports.past_runs import run_row
from tests.reports.test_dashboard import put_rows

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(prefect_server: str, place: Place) -> Callable[..., subprocess.Popen[str]]:
    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={
                **os.environ,
                "PREFECT_API_URL": prefect_server,
                "AWS_ENDPOINT_URL": place.s3.endpoint_url,
                "PYTHONPATH": str(EXAMPLES.parent),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run_example(
    prefect_server: str,  # noqa: ARG001 - it is configured already
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Command]:
    """Runs an example to its end in this process: to load Prefect anew takes seconds each time."""

    def run(name: str, *arguments: str) -> Command:
        capfd.readouterr()
        code: object = 0
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", place.s3.endpoint_url)
            patch.setattr(sys, "argv", [name, *arguments])
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as end:
                code = end.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
            code = 1
        return Command(int(str(code or 0)), *capfd.readouterr())

    return run


@pytest.mark.slow
def test_first_run_and_metrics_with_duckdb(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    example: Callable[..., subprocess.Popen[str]],
    run_example: Callable[..., Command],
    tmp_path: Path,
) -> None:
    process = example("first_run.py", catalog(prompt=["a", "b", "a"]), place.uri, emulator().base_url)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert out.startswith("2 of 2 images for $0.0014: s3://")

    for name in place.objects():
        if name.startswith("metrics/"):
            target = tmp_path / name
            target.parent.mkdir(parents=True)
            target.write_bytes(place.read(name))
    assert "together" in run_example("metrics_with_duckdb.py", str(tmp_path / "metrics")).out


def test_vision_judge(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    run_example: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGEMILL_JUDGE_KEY", "the-judges-own-key")
    url = emulator(pictures="full").base_url
    prompts = ["fine", "poor #score:0.5"]
    done = run_example("vision_judge.py", catalog(prompt=prompts), place.uri, url, f"{url}/judge/v1")
    assert done.code == 0, done.err
    assert re.match(r"2 judged for \$0\.00\d\d, 1 suspect\n2 of 2 images for \$0\.00\d\d: s3://", done.out)


@pytest.mark.slow
def test_first_run_says_what_cannot_be_used(place: Place, run_example: Callable[..., Command]) -> None:
    refused = run_example("first_run.py", "nowhere.parquet", place.uri)
    assert refused.code == 1
    assert "The catalog 'nowhere.parquet' does not exist." in refused.err.splitlines()


@pytest.mark.slow
def test_the_notebook_goes_from_a_frame_to_pictures_and_repairs_a_row(
    place: Place, emulator: Callable[..., Emulator], prefect_server: str, tmp_path: Path
) -> None:
    emulated = emulator()
    api = {"provider": "together", "base_url": emulated.base_url}
    document = json.loads((EXAMPLES / "frame_to_pictures.ipynb").read_text())
    settings = next(cell for cell in document["cells"] if cell["cell_type"] == "code")
    settings["source"] = f"output, api = {place.uri!r}, {api!r}"
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(json.dumps(document))
    done = subprocess.run(
        [Path(sys.executable).with_name("jupyter-execute"), "--inplace", notebook],
        env={
            **os.environ,
            "PREFECT_API_URL": prefect_server,
            "AWS_ENDPOINT_URL": place.s3.endpoint_url,
            "PYTHONPATH": str(EXAMPLES.parent),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = [
        output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", ())
    ]
    printed = "".join("".join(output.get("text", ())) for output in outputs)
    assert "2 of 2 images are done (2 generated), 1 row was rejected" in printed
    assert "3 of 3 images are done (1 generated, 2 reused)" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert emulated.bill()["images"] == 3


@pytest.mark.slow
def test_saved_blocks_hold_all_keys(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    run_example: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = run_example("save_blocks.py", place.uri, "postgresql://mill@db.example.com/jobs")
    assert yaml.safe_load(saved.out.partition("\n\n")[2]) == {
        "job": {
            "catalog": {"path": "catalog.parquet"},
            "output": {"uri": place.uri, "s3_bucket_block": "images"},
            "api": {"block": "imagemill-together/main"},
            "execution": {"store": "block:imagemill-postgres-store/jobs"},
        }
    }, saved.err
    assert "# or: api: &api {block: imagemill-fal/main}" in saved.out
    for name in place.s3.environment:
        monkeypatch.delenv(name)
    fal = image_api(ApiSettings(block="imagemill-fal/main", model="fal-ai/flux/dev"))
    assert (fal.provider, fal.model) == ("fal", "fal-ai/flux/dev")
    assert fal.api_key.get_secret_value() == "test-key-fal"
    with pytest.raises(InputError, match="base_url"):
        image_api(ApiSettings(block="imagemill-fal/main", base_url="nowhere"))
    emulated = emulator()
    summary = generate_catalog(
        catalog=catalog(prompt=["a"]),
        output={"uri": place.uri, "s3_bucket_block": "images"},
        api={"block": "imagemill-together/main", "base_url": emulated.base_url},
        picture={"width": 256, "height": 256},
    )
    assert summary.done == 1
    assert emulated.bill()["images"] == 1


@pytest.fixture
def letters() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """The address of somebody who is sent notifications, and what came."""
    came: queue.Queue[dict[str, Any]] = queue.Queue()

    class Letterbox(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Letterbox) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", came
        server.shutdown()
        thread.join()


ALERT = "automations/alert.py"


@pytest.mark.slow
def test_alerts_reach_whom_the_automations_name(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    letters: tuple[str, queue.Queue[dict[str, Any]]],
    run_example: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, came = letters
    assert run_example(ALERT, "regressions").err == (
        "Nowhere to send alerts: export ALERT_WEBHOOK_URL, or pass a block: --block email/oncall.\n"
    )
    assert run_example(ALERT, "stops", "--block", "email/nobody").err == (
        "There is no saved block 'email/nobody'. List them with: prefect block ls\n"
    )
    Secret(value="none").save("mute")
    mute = run_example(ALERT, "stops", "--block", "secret/mute")
    assert mute.err.startswith("The block 'secret/mute' cannot send messages. ")
    letter = {"text": "to another: {{subject}}"}
    CustomWebhookNotificationBlock(name="other", url=url, json_data=letter).save("other")
    monkeypatch.setenv("ALERT_WEBHOOK_URL", url)
    for arguments in (
        ["regressions", "--block", "custom-webhook/other"],  # the next one replaces it
        ["regressions"], ["failures"], ["stops"], ["spend", "0.06"],
    ):  # fmt: skip
        made = run_example(ALERT, *arguments)
        assert made.out.startswith(f"The automation imagemill-{arguments[0]} sends its messages through"), (
            made
        )
    assert url not in repr(CustomWebhookNotificationBlock.load("imagemill-alerts"))

    def next_letter() -> list[str]:
        lines: list[str] = came.get(timeout=PATIENCE_S)["text"].splitlines()
        return lines

    put_rows(place, [*[run_row(n) for n in range(3)], run_row(3, images_per_minute=700.0)])
    (regression,) = build_dashboard(output=place.settings()).regressions
    assert next_letter() == [
        f"imagemill: {regression.catalog} on {regression.provider} did worse",
        f"Run {regression.run_id}: {regression.in_words}.",
        f"Report: {place.uri}/runs/{regression.run_id}/report.html",
        f"All runs: {place.uri}/dashboard.html",
    ]
    for cost_usd in (0.05, 0.011, 0.001):  # the second run makes six cents
        row = run_row(9, cost_usd=cost_usd, run_id=f"dear-{cost_usd}", ended_at=datetime.now(UTC))
        put_rows(place, [row])
        build_dashboard(output=place.settings())
    assert next_letter()[0] == "imagemill: $0.061 within 24 hours"

    for prompts, limits, state in (
        (["a", "b #fault:400"], {}, "CompletedWithFailures"),
        (["c"], {"max_cost_usd": 0}, "Stopped"),
    ):
        ended = generate_catalog(
            catalog=catalog(prompt=prompts),
            output=place.settings(),
            api={"provider": "together", "base_url": emulator().base_url},
            picture={"width": 256, "height": 256},
            limits=limits,
            return_state=True,
        )
        subject, message, _ = next_letter()  # the third is a link to the run, where there is a UI
        assert (subject, message) == (f"imagemill: generate-catalog is {state}", ended.message)
    assert came.empty()


@pytest.mark.slow
def test_scheduled_refresh_is_scheduled(
    place: Place, catalog: Callable[..., str], example: Callable[..., subprocess.Popen[str]]
) -> None:
    process = example("scheduled_refresh.py", catalog(prompt=["a"]), place.uri)
    with get_client(sync_client=True) as client:

        def scheduled() -> bool:
            deployments = client.read_deployments()
            return any(d.name == "nightly-from-python" and d.schedules for d in deployments)

        wait_for(scheduled, process)
    process.terminate()
    process.communicate()


@pytest.mark.slow
def test_a_run_whose_machine_died_is_started_again(run_example: Callable[..., Command]) -> None:
    """Three flow runs send a heartbeat, as Prefect's engine does; one is silent then, one crashed."""
    for _ in range(2):  # the second replaces the first
        made = run_example("automations/restart.py", "10")
        assert made.out == "Runs are started again that crash, or have been silent for 10 seconds.\n", made
    with get_client(sync_client=True) as client:
        for name in ("imagemill-restart", "imagemill-restart-crashed"):
            assert len(client.read_automations_by_name(name)) == 1
        flow_id = client.create_flow(generate_catalog)
        deployment_id = client.create_deployment(flow_id, "restarted")
        flow = {"prefect.resource.role": "flow", "prefect.resource.name": "generate-catalog"}
        flow["prefect.resource.id"] = f"prefect.flow.{flow_id}"
        deployment = {"prefect.resource.role": "deployment"}
        deployment["prefect.resource.id"] = f"prefect.deployment.{deployment_id}"
        died, ended, crashed = (client.create_flow_run_from_deployment(deployment_id).id for _ in range(3))
        for run in (died, ended, crashed):
            client.set_flow_run_state(run, Running(), force=True)
            resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
            emit_event("prefect.flow-run.heartbeat", resource, related=[flow, deployment])
        client.set_flow_run_state(ended, Completed(), force=True)
        client.set_flow_run_state(crashed, Crashed(), force=True)

        deadline = time.monotonic() + PATIENCE_S
        for run, why in ((crashed, "It crashed"), (died, "Its machine has been silent")):
            while client.read_flow_run(run).state_name != "AwaitingRetry" and time.monotonic() < deadline:
                time.sleep(0.5)
            again = client.read_flow_run(run)
            assert (again.state_name, again.state.message) == ("AwaitingRetry", f"{why}: it is resumed.")
            assert again.next_scheduled_start_time <= datetime.now(UTC)
        assert client.read_flow_run(ended).state_name == "Completed"
