"""A run in pods that come and go, each with a disk of its own: nothing is lost, nothing paid for twice."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.emulator import Emulator
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place
from tests.patience import PATIENCE_S
from tests.runs.test_crash import run_arguments, settled


@pytest.mark.slow
@pytest.mark.parametrize(
    "api",
    [("fal", "memory"), ("together", "sqlite"), ("runware", "redis"), ("fal", "postgres")],
    ids="-".join,
)
def test_a_run_goes_on_in_other_pods(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    store_url: Callable[[str], str],
    tmp_path: Path,
    api: tuple[str, str],
) -> None:
    provider, store = api
    keys = {"RUNWARE_API_KEY": "test-key-runware"}
    pods = [{"IMAGEMILL_HOME": str(tmp_path / name), **keys} for name in ("drained", "lost", "last")]
    emulated = emulator(latency_s=0.5, max_concurrent=15)
    path = catalog(prompt=[*[f"p{n}" for n in range(150)], "bad #fault:400*9"])
    kept = ("--store", store_url(store))
    resume = (
        *("resume", "killed", "--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url, *kept),
        *("--base-url", emulated.base_url, "--json"),
    )

    drained = start_command(*run_arguments(place, emulated, provider, path), *kept, **pods[0])
    wait_for(lambda: emulated.bill()["images"] >= 40, drained)
    drained.send_signal(signal.SIGTERM)
    _, err = drained.communicate(timeout=PATIENCE_S)
    assert drained.returncode == 3
    assert "imagemill resume killed" in err
    lost = start_command(*resume, **pods[1])
    wait_for(lambda: emulated.bill()["images"] >= 90, lost)
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
    settled(emulated)
    before = [json.loads(line) for line in lines_in_bucket(place)]
    assert sum(line["event"] == "done" for line in before) >= 40

    done = command(*resume, **pods[2])

    assert done.code == 1, done.err
    summary, bill = done.json, emulated.bill()
    assert [summary[name] for name in ("done", "failed", "pending", "generated")] == [150, 1, 0, 150]
    charged = {line["prompt"]: line["count"] for line in bill["by_key"].values()}
    doubts = {job["prompt"]: job["unanswered"] for job in jobs(place)}
    assert sum(doubts.values()) == summary["unanswered"]
    twice = {prompt: count for prompt, count in charged.items() if count > 1 + doubts[prompt]}
    assert not twice
    if provider == "fal":  # it lists what it has taken
        assert set(charged.values()) == {1}
        assert summary["cost_usd"] == pytest.approx(bill["usd"], abs=1e-9)
    assert summary["cost_usd"] <= bill["usd"] + 1e-9 <= summary["cost_usd"] + summary["unanswered_usd"] + 2e-9
    # The history is whole, each line once, and its parts are gone.
    after = place.read("runs/killed/log.jsonl").splitlines()
    assert max(Counter(after).values()) == 1
    assert {line["job"] for line in map(json.loads, after) if line["event"] == "done"} >= {
        line["job"] for line in before if line["event"] == "done"
    }
    assert not [name for name in place.objects() if "/parts/" in name]

    # The first pod's disk comes back, and knows less than the bucket.
    again = command(*resume, **pods[0])
    assert again.code == 1, again.err
    totals = ("done", "failed", "pending", "generated", "cost_usd", "unanswered")
    assert [again.json[name] for name in totals] == [summary[name] for name in totals]
    assert emulated.bill()["images"] == bill["images"]
    assert set(after) <= set(place.read("runs/killed/log.jsonl").splitlines())


def jobs(place: Place) -> list[dict[str, Any]]:
    """The jobs of the run, with their prompts."""
    prompts = {row["key"]: row["prompt"] for row in place.table("manifest.parquet")}
    return [{**job, "prompt": prompts[job["key"]]} for job in place.table("runs/killed/jobs.parquet")]


def lines_in_bucket(place: Place) -> list[bytes]:
    places = ("runs/killed/log.jsonl", "runs/killed/parts/")
    names = sorted(name for name in place.objects() if name.startswith(places))
    return [line for name in names for line in place.read(name).splitlines()]
