"""Failed jobs are tried again under the same run id, their history kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.retry_failed import retry_failed
from tests.conftest import Command, Place

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_retryable_failures_first_and_permanent_ones_when_asked(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    tmp_path: Path,
) -> None:
    emulated = emulator()
    first = generate_catalog(
        catalog=catalog(id=["a", "b", "c"], prompt=["x", "y #fault:garbage*2", "z #fault:400*2"]),
        api={"provider": "together", "base_url": emulated.base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        execution={"run_id": "again"},
    )
    assert (first.done, first.failed) == (1, 2)

    second = retry_failed("again")
    assert (second.done, second.failed) == (2, 1)
    third = retry_failed("again", permanent=True)
    assert (third.done, third.failed) == (2, 1)  # its second 400
    elsewhere = tmp_path / "another-store.db"  # which knows nothing yet of the earlier attempts
    given = ("--permanent", "--store", f"sqlite:{elsewhere}", "--json")
    fourth = command("retry-failed", "again", *given).json
    assert (fourth["done"], fourth["failed"], fourth["unique"]) == (3, 0, 3)
    assert elsewhere.exists()

    jobs = {job["id"]: job for job in place.table("runs/again/jobs.parquet")}
    assert {name: job["attempts"] for name, job in jobs.items()} == {"a": 1, "b": 3, "c": 3}
    events = [json.loads(line) for line in place.read("runs/again/log.jsonl").splitlines()]
    history = [e["event"] for e in events if e.get("id") == "b" and e["event"] != "sent"]
    assert history == ["attempt_failed", "attempt_failed", "failed", "reopened", "done"]
    assert place.table("runs/again/failed.parquet") == []
    assert fourth["cost_usd"] == pytest.approx(emulated.bill()["usd"])


@pytest.mark.slow
def test_a_time_limit_that_was_too_short_can_be_raised(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=1.0)
    out = ("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url)
    api = ("--provider", "together", "--base-url", emulated.base_url, "--request-timeout", "0.1")
    failed = command("run", catalog(prompt=["a"]), *out, *api, "--run-id", "hasty")
    assert failed.code == 1, failed.err
    done = command("retry-failed", "hasty", "--request-timeout", "30")
    assert done.code == 0, done.err


@pytest.mark.slow
@pytest.mark.parametrize("log", ["with its log", "without its log"])
def test_another_machine_finds_the_run_by_its_output(
    log: str,
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    emulated = emulator()
    for run_id, prompts in (("earlier", ["w"]), ("moved", ["w", "x", "y #fault:500*2"])):
        generate_catalog(
            catalog=catalog(prompt=prompts),
            api={"provider": "together", "base_url": emulated.base_url},
            output=place.settings(),
            picture={"width": 256, "height": 256},
            execution={"run_id": run_id},
        )
    if log == "without its log":
        place.delete("runs/moved/log.jsonl")
    monkeypatch.setenv("IMAGEMILL_HOME", f"{tmp_path}/another-machine")
    with pytest.raises(InputError, match="There is no run 'moved' on this machine"):
        retry_failed("moved")
    with pytest.raises(InputError, match=r"base_url http://127"):  # where the record would send the key
        retry_failed("moved", output=place.settings())
    store = Path(f"{tmp_path}/another-store.db")
    given: dict[str, Any] = {"base_url": emulated.base_url, "execution": {"store": f"sqlite:{store}"}}
    summary = retry_failed("moved", output=place.settings(), **given)
    assert store.exists()
    # The images' receipts, or else the log, say which of them this run has paid for.
    assert (summary.done, summary.generated, summary.reused) == (3, 2, 1)
    assert emulated.bill()["images"] == 3
    assert summary.cost_usd == pytest.approx(emulated.bill()["usd"] * 2 / 3)
