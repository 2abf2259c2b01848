"""A run whose machine is lost, disk and all, goes on elsewhere: nothing is lost, nothing paid for twice."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from imagemill.emulator import Emulator
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place
from tests.runs.test_crash import run_arguments, settled


@pytest.mark.slow
def test_a_run_goes_on_where_its_machine_was_lost(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    tmp_path: Path,
) -> None:
    lost, other = ({"IMAGEMILL_HOME": str(tmp_path / name)} for name in ("lost", "other"))
    emulated = emulator(latency_s=1.0, max_concurrent=15)
    path = catalog(prompt=[*[f"p{n}" for n in range(200)], "bad #fault:400*9"])
    given = [*run_arguments(place, emulated, "fal", path), "--store", "memory"]
    process = start_command(*given, **lost)
    wait_for(lambda: emulated.bill()["images"] >= 100, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    settled(emulated)
    before = [json.loads(line) for line in lines_in_parts(place)]
    assert sum(line["event"] in {"accepted", "done"} for line in before) >= 30

    resume = ("resume", "killed", "--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url)
    done = command(*resume, "--base-url", emulated.base_url, "--json", **other)

    assert done.code == 1, done.err
    summary, bill = done.json, emulated.bill()
    assert [summary[name] for name in ("done", "failed", "pending", "generated")] == [200, 1, 0, 200]
    charged = {line["prompt"]: line["count"] for line in bill["by_key"].values()}
    doubts = {job["id"]: job["unanswered"] for job in place.table("runs/killed/jobs.parquet")}
    assert sum(doubts.values()) == summary["unanswered"]
    assert set(charged.values()) == {1}
    assert summary["cost_usd"] == pytest.approx(bill["usd"], abs=1e-9)
    # The history is whole, each line once, and its parts are gone.
    after = place.read("runs/killed/log.jsonl").splitlines()
    assert max(Counter(after).values()) == 1
    assert {line["job"] for line in map(json.loads, after) if line["event"] == "done"} >= {
        line["job"] for line in before if line["event"] == "done"
    }
    assert not [name for name in place.objects() if "/parts/" in name]


def lines_in_parts(place: Place) -> list[bytes]:
    names = sorted(name for name in place.objects() if name.startswith("runs/killed/parts/"))
    return [line for name in names for line in place.read(name).splitlines()]
