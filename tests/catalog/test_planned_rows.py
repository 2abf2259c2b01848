"""The catalog's own columns of a job, looked up in a plan of several row groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.catalog.planned_rows import PlannedRows


def test_the_first_row_of_each_job_is_found_whatever_group_it_is_in(tmp_path: Path) -> None:
    jobs = [0, 1, 0, None, None, None, 2, 1, 3, 2, 4, 0, *range(5, 40)]
    skus = [f"sku-{place}" for place in range(len(jobs))]
    plan = pa.table({"job": pa.array(jobs, pa.int64()), "carried:sku": skus, "prompt": skus})
    pq.write_table(plan, tmp_path / "plan.parquet", row_group_size=3)
    rows = PlannedRows(tmp_path / "plan.parquet")
    for job in (*range(40), 3, 39, 0):
        assert rows.of(job) == {"sku": skus[jobs.index(job)]}
    assert rows.of(40) == {}


def test_no_plan_or_no_other_column_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"plan\.parquet"):
        PlannedRows(tmp_path / "plan.parquet").of(0)
    pq.write_table(pa.table({"job": [0], "prompt": ["A tram"]}), tmp_path / "bare.parquet")
    assert PlannedRows(tmp_path / "bare.parquet").of(0) == {}
