"""Properties that hold for any input: keys, catalogs, a job's states, Retry-After."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from imagemill.blocks.apis import Together
from imagemill.catalog.files import open_catalog
from imagemill.catalog.keys import job_key, normalized, prompt_seed
from imagemill.catalog.plan import Planner
from imagemill.errors import InputError
from imagemill.jobs import TERMINAL, Job, JobStatus
from imagemill.rate_limit_headers import retry_after_seconds
from imagemill.settings import CatalogSettings, PictureSettings

FIELDS = st.fixed_dictionaries(
    {
        "model": st.text(max_size=20),
        "prompt": st.text(max_size=50),
        "negative_prompt": st.none() | st.text(max_size=20),
        "width": st.integers(1, 4096),
        "height": st.integers(1, 4096),
        "steps": st.integers(1, 50),
        "seed": st.integers(0, 2**32 - 1),
        "image_format": st.sampled_from(["png", "jpeg"]),
    }
)


@given(FIELDS, FIELDS)
def test_keys_are_equal_only_for_equal_fields(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (job_key(**one) == job_key(**other)) == (one == other)


@given(st.text())
def test_normalizing_twice_changes_nothing_more_and_seeds_fit_every_api(prompt: str) -> None:
    once = normalized(prompt)
    assert normalized(once) == once
    assert 0 <= prompt_seed(once) < 2**31


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x"]), st.text(max_size=40)))
def test_retry_after_is_bounded_whatever_is_sent(headers: dict[str, str]) -> None:
    seconds = retry_after_seconds(headers)
    assert seconds is None or 0 <= seconds <= 3600


COLUMN = st.one_of(
    st.lists(st.none() | st.text(max_size=30), min_size=3, max_size=3),
    st.lists(st.none() | st.integers(-(2**40), 2**40), min_size=3, max_size=3),
    st.lists(st.none() | st.floats(), min_size=3, max_size=3),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3),
    st.lists(st.none() | st.binary(max_size=10), min_size=3, max_size=3),
    st.lists(st.none() | st.datetimes(), min_size=3, max_size=3),
    st.lists(st.none() | st.lists(st.integers(0, 9), max_size=2), min_size=3, max_size=3),
)
NAMES = st.sampled_from(
    [
        "prompt",
        "id",
        "width",
        "height",
        "seed",
        "steps",
        "negative_prompt",
        "uri",
        "status",
        "key",
        "é",
        "a b",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, COLUMN, min_size=1, max_size=6))
def test_any_parquet_file_is_planned_or_refused_in_a_sentence(columns: dict[str, list[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.parquet"
        pq.write_table(pa.table(columns), path)
        planner = Planner(Together(api_key=SecretStr("k")), PictureSettings())
        try:
            batches = list(planner.plan(open_catalog(CatalogSettings(path=str(path)))))
        except InputError as error:
            event(f"refused: {type(error.__cause__).__name__}")
            return
        counts = planner.counts
        rows = [row for plan, _, _ in batches for row in plan.to_pylist()]
        assert counts.rows == len(rows) == 3
        assert counts.rejected == sum(row["reason"] is not None for row in rows)
        assert counts.unique == len({row["key"] for row in rows if row["key"]})
        assert counts.rejected + counts.unique + counts.duplicates == counts.rows
        for row in rows:
            assert (row["job"] is None) == (row["reason"] is not None)


STEPS = st.lists(st.sampled_from(["start", "requeue", "finish", "fail", "reopen"]), max_size=12)


@given(STEPS)
def test_a_jobs_states_change_only_as_they_may(steps: list[str]) -> None:
    job = Job(0, "a", "k", "p", None, 64, 64, 1, 4, "m", "png")
    actions: dict[str, Any] = {
        "start": lambda: job.start(1.0),
        "requeue": job.requeue,
        "finish": lambda: job.finish(2.0, image="i", image_bytes=1, latency_s=1.0),
        "fail": lambda: job.fail(2.0, error_class="c", code="c", message="m", retryable=True),
        "reopen": job.reopen,
    }
    for step in steps:
        before, attempts = job.status, job.attempts
        try:
            actions[step]()
        except ValueError:
            assert job.status is before
            assert before in TERMINAL or step == "reopen"
            assert job.attempts == attempts
            continue
        assert before not in TERMINAL or (step == "reopen" and before is JobStatus.FAILED)
        assert (job.image is not None) == (job.status is JobStatus.DONE)
        assert (job.error_code is not None) == (job.status is JobStatus.FAILED)
        assert job.attempts == attempts + (step == "start")
