"""imagemill reconcile: a run compared with billing events of fal's, and with an exported CSV."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")

Reconcile = Callable[..., dict[str, Any]]

PROMPTS = [*(f"an owl, number {n}" for n in range(5)), "a tram #fault:fail*1", "a fox #fault:truncated*1"]


@pytest.fixture
def reconcile(capsys: pytest.CaptureFixture[str]) -> Reconcile:
    """What ``imagemill reconcile ... --json`` prints; its exit code is checked."""

    def ask(*arguments: str, code: int) -> dict[str, Any]:
        capsys.readouterr()
        found = main(["reconcile", *arguments, "--json"])
        printed = capsys.readouterr()
        assert found == code, printed
        return json.loads(printed.out) if code < 2 else {"error": printed.err}

    return ask


def reasons(found: dict[str, Any]) -> dict[str, tuple[int, float, float]]:
    return {
        name: (total["requests"], total["booked_usd"], total["charged_usd"])
        for name, total in found["reasons"].items()
    }


@pytest.mark.slow
def test_a_run_is_compared_with_fals_billing_events(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    reconcile: Reconcile,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    emulated = emulator(admin_keys=("boss",))
    given: dict[str, Any] = {
        "catalog": catalog(prompt=PROMPTS),
        "api": {"provider": "fal", "base_url": emulated.base_url},
        "output": place.settings(),
        "picture": {"width": 512, "height": 512},
    }
    summary = generate_catalog(**given, execution={"run_id": "r"})
    # One image arrived damaged: it was paid for twice, and both are booked.
    assert (summary.done, summary.cost_usd) == (7, 0.024)

    refused = reconcile("r", code=2)["error"]
    assert "FAL_ADMIN_KEY" in refused
    assert "--from FILE" in refused
    monkeypatch.setenv("FAL_ADMIN_KEY", "boss")
    other = httpx.post(
        f"{emulated.base_url}/fal-ai/flux/schnell", json={"prompt": "x"}, headers={"Authorization": "Key k"}
    )
    while emulated.bill()["images"] < 9:
        pass
    found = reconcile("r", code=0)
    assert found["agrees"]
    # Eight that were charged, and one that ended in a 500.
    assert reasons(found) == {"agreed": (9, 0.024, 0.024), "unknown_request": (1, 0.0, 0.003)}
    rows = place.table("runs/r/reconciliation.parquet")
    assert [row["request_id"] for row in rows if row["job"] is None] == [other.json()["request_id"]]
    assert sum(row["charged_usd"] for row in rows) == Decimal("0.027")
    assert b"The $0.024 that this run booked are what was charged" in place.read("runs/r/report.html")

    emulated.configure(billing_lag_s=3600)
    late = reconcile("r", code=1)
    assert late["difference_usd"] == -0.024
    assert reasons(late)["booked_not_charged"] == (8, 0.024, 0.0)
    assert b"unit_price" in place.read("runs/r/model.json")  # what fal said before the run
    report = place.read("runs/r/report.html").decode()
    assert report.count('id="reconciliation"') == 1
    assert "Booked, not charged" in report

    # A wrong price, from another machine that only has the bucket.
    emulated.configure(billing_lag_s=0)
    given["api"]["usd_per_image"] = 0.0025
    given["output"]["uri"] += "/second"
    generate_catalog(**given, execution={"run_id": "cheap"})
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "other"))
    where = ("--output", given["output"]["uri"], "--s3-endpoint-url", place.s3.endpoint_url)
    assert (
        "--base-url" in reconcile("cheap", *where, code=2)["error"]
    )  # the bucket decides nothing about keys
    cheap = reconcile("cheap", *where, "--base-url", emulated.base_url, code=1)
    assert cheap["difference_usd"] == 0.0035
    assert reasons(cheap)["other_amount"] == (7, 0.0175, 0.021)


@pytest.mark.slow
def test_a_run_is_compared_with_an_exported_csv(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    reconcile: Reconcile,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "token")
    emulated = emulator()
    generate_catalog(
        catalog=catalog(prompt=["an owl", "a fox", "a tram"]),
        api={"provider": "replicate", "base_url": emulated.base_url},
        output=place.settings(),
        execution={"run_id": "r"},
    )
    ids = [row["request_id"] for row in place.table("runs/r/jobs.parquet")]
    bill = tmp_path / "bill.csv"
    bill.write_text(f"Prediction;Price\n{ids[0]};0,003\n{ids[1]};0,002\n{ids[1]};0,002\nelse;1,5\n")
    assert "has no column 'request_id'" in reconcile("r", "--from", str(bill), code=2)["error"]
    columns = ("--column", "request_id=Prediction", "--column", "usd=Price")
    found = reconcile("r", "--from", str(bill), *columns, code=1)
    assert (found["source"], found["booked_usd"], found["difference_usd"]) == ("bill.csv", 0.009, -0.002)
    assert reasons(found) == {
        "agreed": (1, 0.003, 0.003),
        "other_amount": (1, 0.003, 0.004),
        "booked_not_charged": (1, 0.003, 0.0),
        "unknown_request": (1, 0.0, 1.5),
    }
    assert "does not list what it charged" in reconcile("r", code=2)["error"]
    for amount in ("zero", "1e30"):
        bill.write_text(f"id,cost_usd\n{ids[0]},{amount}\n")
        assert "Line 2 of" in reconcile("r", "--from", str(bill), code=2)["error"]
