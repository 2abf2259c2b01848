"""A normal run on a default Prefect server: nothing is lost on the way to the UI."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prefect_load import TASK_RUN_STATES, measure_load
from tests.s3_server import S3Server


@pytest.mark.slow
def test_forty_shards_lose_no_event(s3: S3Server, tmp_path: Path) -> None:
    """As many task runs as ten thousand images make, with a twelfth of the images; the benchmark has all."""
    load = measure_load(tmp_path, s3, images=800, shard_size=20)
    assert (load.state, load.images) == ("Completed", 800)
    assert load.task_runs == 40 + len(["prepare", "publish", "measure"])
    assert load.task_run_events == len(TASK_RUN_STATES) * load.task_runs
    assert load.left_running == 0
    assert load.dropped == 0
