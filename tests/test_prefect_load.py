"""A normal run, ten thousand images, on a default Prefect server: nothing is lost on the way to the UI."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prefect_load import measure_load
from imagemill.s3_server import S3Server


@pytest.mark.slow
def test_ten_thousand_images_lose_no_event(s3: S3Server, tmp_path: Path) -> None:
    load = measure_load(tmp_path, s3, 10_000)
    assert (load.state, load.images) == ("Completed", 10_000)
    assert load.task_runs == 10_000 / 250 + len(["prepare", "publish", "measure"])
    assert load.left_running == 0
    assert load.dropped == 0
