"""Publishes a run's records: the manifest, a row a job, the dead letters, the rejected rows, the log."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blocks.bucket import copy_name
from blocks.jobs import Job, JobStatus
from tasks.plan import PLAN_SCHEMA
from tasks.run_folder import JSON_LINES, PARQUET
from tasks.session import Session, open_session
from tasks.settings import RunSettings
from tasks.verb import verb

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

_MANIFEST_OWN = (
    "id", "prompt", "negative_prompt", "width", "height", "seed", "steps",
    "key", "status", "uri", "copy_uri", "error_code",
)  # fmt: skip


@verb("publish")
def publish(settings: RunSettings) -> str:
    """Write all records of a run into the bucket, the manifest last; its address."""
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
        _write_manifest(session, outcomes, folder / "manifest.parquet")
        return session.bucket.upload(folder / "manifest.parquet", "manifest.parquet", PARQUET)


class _Outcomes:
    """How each job ended, by its number: all that the manifest needs of a million jobs."""

    def __init__(self) -> None:
        self.status: list[str] = []
        self.image: list[str | None] = []
        self.error_code: list[str | None] = []

    def add(self, job: Job) -> None:
        unfinished = job.status is JobStatus.RUNNING
        self.status.append(JobStatus.PENDING if unfinished else job.status)
        self.image.append(job.image)
        self.error_code.append(job.error_code)


def _write_jobs(session: Session, jobs_file: Path, failed_file: Path) -> _Outcomes:
    outcomes = _Outcomes()
    with (
        pq.ParquetWriter(jobs_file, JOBS_SCHEMA, compression="zstd") as jobs_writer,
        pq.ParquetWriter(failed_file, FAILED_SCHEMA, compression="zstd") as failed_writer,
    ):
        for jobs in _job_batches(session):
            jobs_writer.write_table(_table(jobs, JOBS_SCHEMA))
            failed = [job for job in jobs if job.status is JobStatus.FAILED]
            if failed:
                failed_writer.write_table(_table(failed, FAILED_SCHEMA))
            for job in jobs:
                outcomes.add(job)
    return outcomes


def _job_batches(session: Session) -> Iterator[list[Job]]:
    batches = session.store.all_jobs()

    async def following() -> list[Job] | None:
        return await anext(batches, None)

    while (jobs := session.wait(following)) is not None:
        yield jobs


def _table(jobs: list[Job], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values: list[Any] = [getattr(job, field.name) for job in jobs]
        if pa.types.is_timestamp(field.type):
            values = [None if value is None else round(value * 1000) for value in values]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _copy_images(session: Session, outcomes: _Outcomes) -> None:
    def copy(row: tuple[str, str]) -> None:
        session.bucket.copy(row[1], copy_name(row[0], row[1].rpartition(".")[2]))

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        for batch in pq.ParquetFile(session.folder.plan).iter_batches(columns=["id", "job"]):
            rows = zip(batch["id"].to_pylist(), batch["job"].to_pylist(), strict=True)
            images = ((row_id, outcomes.image[job]) for row_id, job in rows if job is not None)
            for _ in threads.map(copy, [(i, image) for i, image in images if image is not None]):
                pass


def _write_manifest(session: Session, outcomes: _Outcomes, file: Path) -> None:
    """The catalog as it stands: a row a catalog row, with what became of it."""
    plan = pq.ParquetFile(session.folder.plan)
    carried = [f for f in plan.schema_arrow if f.name not in PLAN_SCHEMA.names]
    names = {field.name: field.name.removeprefix("carried:") for field in carried}
    names.update({f: f"catalog_{n}" for f, n in names.items() if n in _MANIFEST_OWN})
    copies = session.settings.output.copies
    writer: pq.ParquetWriter | None = None
    try:
        for batch in plan.iter_batches():
            planned = pa.Table.from_batches([batch])
            table = _manifest_table(session, planned, outcomes, copies=copies)
            for field in carried:
                table = table.append_column(pa.field(names[field.name], field.type), planned[field.name])
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is None:
            empty = plan.schema_arrow.empty_table()
            table = _manifest_table(session, empty, outcomes, copies=copies)
            writer = pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _manifest_table(session: Session, planned: pa.Table, outcomes: _Outcomes, *, copies: bool) -> pa.Table:
    jobs: list[int | None] = planned["job"].to_pylist()
    images = [None if job is None else outcomes.image[job] for job in jobs]
    uris = [image and session.bucket.uri_of(image) for image in images]
    copy_uris = [
        session.bucket.uri_of(copy_name(row_id, image.rpartition(".")[2])) if image and copies else None
        for row_id, image in zip(planned["id"].to_pylist(), images, strict=True)
    ]
    own = {
        "status": ["rejected" if job is None else outcomes.status[job] for job in jobs],
        "uri": uris,
        "copy_uri": copy_uris,
        "error_code": [None if job is None else outcomes.error_code[job] for job in jobs],
    }
    columns = {
        name: pa.array(own[name], pa.string()) if name in own else planned[name] for name in _MANIFEST_OWN
    }
    return pa.table(columns)
