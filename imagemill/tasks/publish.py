"""Publishes a run's records: the manifest, a row a job, the dead letters, the rejected rows, the log."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.bucket.image_bucket import copy_name, image_name
from imagemill.bucket.manifest import Outcomes, replace_manifest, write_manifest
from imagemill.bucket.manifest_diff import Changes
from imagemill.jobs import Job, JobStatus
from imagemill.parquet import RowWriter, read_batches
from imagemill.runs.folder import JSON_LINES, PARQUET
from imagemill.runs.session import Session, open_session
from imagemill.settings import RunSettings
from imagemill.tasks.verb import verb

_COPIES_AT_ONCE = 16

JOBS_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("id", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),
        ("error_code", pa.string()),
        ("error_class", pa.string()),
        ("cost_usd", pa.float64()),
        ("unanswered", pa.int32()),
        ("unanswered_usd", pa.float64()),
        ("reused", pa.bool_()),
        ("request_id", pa.string()),
        ("image", pa.string()),
        ("image_bytes", pa.int64()),
        ("started_at", pa.timestamp("ms", "UTC")),
        ("finished_at", pa.timestamp("ms", "UTC")),
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
    ]
)


@verb("publish")
def publish(settings: RunSettings, *, retire: bool = False, prune: bool = False) -> Changes:
    """Write all records of a run into the bucket, the manifest last; what changed against the one before.

    With ``retire``, rows that the manifest has and the catalog has no more stay in it as retired; with
    ``prune`` their images are deleted, unless another row uses them.
    """
    with open_session(settings) as session:
        folder = session.folder.path
        outcomes = _write_jobs(session, folder / "jobs.parquet", folder / "failed.parquet")
        for name, media_type in (
            ("jobs.parquet", PARQUET),
            ("failed.parquet", PARQUET),
            ("rejected.parquet", PARQUET),
            ("log.jsonl", JSON_LINES),
        ):
            session.bucket.upload(folder / name, f"runs/{settings.run_id}/{name}", media_type)
        if settings.output.copies:
            _copy_images(session, outcomes)
        write_manifest(session, outcomes, folder / "manifest.parquet")
        return replace_manifest(session, retire=retire, prune=prune)


def _write_jobs(session: Session, jobs_file: Path, failed_file: Path) -> Outcomes:
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
            columns.append(pa.array(column, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _copy_images(session: Session, outcomes: Outcomes) -> None:
    def copy(row: tuple[str, str, str]) -> None:
        row_id, key, extension = row
        session.bucket.copy(image_name(key, extension), copy_name(row_id, extension))

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        for batch in read_batches(session.folder.plan, ["id", "key", "job"]):
            extensions = outcomes.of(batch["job"])[2]
            rows = zip(batch["id"].to_pylist(), batch["key"].to_pylist(), extensions, strict=True)
            for _ in threads.map(copy, [row for row in rows if row[2] is not None]):
                pass
