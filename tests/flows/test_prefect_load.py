"""A normal run on a default Prefect server: nothing is lost on the way to the UI."""

from __future__ import annotations

import pytest

from benchmarks.prefect_load import TASK_RUN_STATES, load_on
from tests.flows.conftest import Office


@pytest.mark.slow
def test_forty_shards_lose_no_event(office: Office) -> None:
    """As many task runs as ten thousand images make, with few images; the benchmark has all."""
    load = load_on(office.prefect, office.place.s3, images=200, shard_size=5)
    assert (load.state, load.images) == ("Completed", 200)
    assert load.task_runs == 40 + len(["prepare", "publish", "measure"])
    assert load.task_run_events == len(TASK_RUN_STATES) * load.task_runs
    assert load.left_running == 0
    assert load.dropped == 0
