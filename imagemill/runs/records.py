"""The records of a run: one row per job, the dead letters, the rows' own copies of their images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import copy_name, image_name
from imagemill.bucket.manifest import Outcomes, variants_of
from imagemill.jobs import Job, JobStatus
from imagemill.media_types import JSON_LINES, PARQUET
from imagemill.parquet import RowWriter, read_batches
from imagemill.runs.session import Session

_COPIES_AT_ONCE = 16
_NULLS = frozenset({"cost_source", "varied"})
"""Columns in which "" stands for nothing."""

JOBS_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),
        ("queued_s", pa.float64()),
        ("error_code", pa.string()),
        ("error_class", pa.string()),
        ("cost_usd", pa.float64()),
        ("cost_source", pa.string()),
        ("unanswered", pa.int32()),
        ("unanswered_usd", pa.float64()),
        ("reused", pa.bool_()),
        ("request_id", pa.string()),
        ("image", pa.string()),
        ("image_bytes", pa.int64()),
        ("started_at", pa.timestamp("ms", "UTC")),
        ("finished_at", pa.timestamp("ms", "UTC")),
        ("variant", pa.int32()),
        ("varied", pa.string()),
    ]
)

FAILED_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("key", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("model", pa.string()),
        ("format", pa.string()),
        ("attempts", pa.int32()),
        ("error_class", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("retryable", pa.bool_()),
        ("cost_usd", pa.float64()),
        ("finished_at", pa.timestamp("ms", "UTC")),
        ("params", pa.string()),
        ("variant", pa.int32()),
        ("varied", pa.string()),
    ]
)


def write_records(session: Session) -> Outcomes:
    """Write jobs.parquet and failed.parquet into the run's folder; the outcomes of all jobs."""
    jobs_file, failed_file = session.folder.path / "jobs.parquet", session.folder.path / "failed.parquet"
    outcomes = Outcomes()
    with (
        RowWriter(jobs_file, JOBS_SCHEMA) as jobs_writer,
        RowWriter(failed_file, FAILED_SCHEMA) as failed_writer,
    ):
        for jobs in _job_batches(session):
            jobs_writer.write(_table(jobs, JOBS_SCHEMA))
            failed = [job for job in jobs if job.status is JobStatus.FAILED]
            if failed:
                failed_writer.write(_table(failed, FAILED_SCHEMA))
            outcomes.add(jobs)
    return outcomes


def _job_batches(session: Session) -> Iterator[list[Job]]:
    batches = session.store.all_jobs()

    async def following() -> list[Job] | None:
        return await anext(batches, None)

    while (jobs := session.wait(following)) is not None:
        yield jobs


def _table(jobs: list[Job], schema: pa.Schema) -> pa.Table:
    columns: list[Any] = []
    values = zip(*map(attrgetter(*schema.names), jobs), strict=True)
    for field, column in zip(schema, values, strict=True):
        if pa.types.is_timestamp(field.type):
            ms = pc.round(pc.multiply(pa.array(column, pa.float64()), 1000.0))
            columns.append(ms.cast(pa.int64()).cast(field.type))
        else:
            values_of = [value or None for value in column] if field.name in _NULLS else column
            columns.append(pa.array(values_of, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def publish_records(session: Session) -> None:
    """Upload the run's records: its jobs, dead letters, rejected rows and log."""
    for name, media_type in (
        ("jobs.parquet", PARQUET),
        ("failed.parquet", PARQUET),
        ("rejected.parquet", PARQUET),
        ("log.jsonl", JSON_LINES),
    ):
        file = session.folder.path / name
        session.bucket.upload(file, f"runs/{session.settings.run_id}/{name}", media_type)


def copy_images(session: Session, outcomes: Outcomes) -> None:
    """Give each row its own copy of its image, made by the server."""

    def copy(row: tuple[str, int, str, str]) -> None:
        row_id, variant, key, extension = row
        session.bucket.copy(image_name(key, extension), copy_name(row_id, extension, variant))

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        names = pq.read_schema(session.folder.plan).names
        for batch in read_batches(
            session.folder.plan, [n for n in ("id", "variant", "key", "job") if n in names]
        ):
            extensions = outcomes.of(batch["job"])[2]
            columns = (batch["id"].to_pylist(), variants_of(batch), batch["key"].to_pylist(), extensions)
            rows = zip(*columns, strict=True)
            for _ in threads.map(copy, [row for row in rows if row[3] is not None]):
                pass
