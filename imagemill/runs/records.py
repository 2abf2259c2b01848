"""The records of a run: one row per job, the dead letters, the rows' own copies of their images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import get_run_logger

from imagemill.bucket.image_bucket import MEDIA_TYPES, copy_name, image_name
from imagemill.bucket.manifest import Outcomes, variants_of
from imagemill.formatting import counted
from imagemill.jobs import KEPT, Job, JobStatus
from imagemill.media_types import JSON_LINES, PARQUET
from imagemill.parquet import RowWriter, read_batches
from imagemill.quality.measures import Measures
from imagemill.quality.near_duplicates import near_duplicates
from imagemill.quality.verdicts import Verdict
from imagemill.runs.session import Session
from imagemill.takes import REJECTED

_COPIES_AT_ONCE = 16
_NULLS = frozenset({"cost_source", "varied", "route", "made_by"})
"""Columns in which "" becomes null."""
_ATTRIBUTES = {"cost_usd": "total_usd", "made_by": "route"}
"""Columns that a job has by another name."""

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
        ("suspect", pa.string()),
        ("seed", pa.int64()),
        ("judge_usd", pa.float64()),
        ("route", pa.string()),
        ("made_by", pa.string()),
    ]
)
"""``route`` is that of the latest request, and ``made_by`` its vendor and model; null in a run over one."""

QUALITY_SCHEMA = pa.schema(
    [
        *[(field.name, pa.string() if field.name == "phash" else pa.float32()) for field in fields(Measures)],
        ("judge_score", pa.float32()),
        ("judge_words", pa.string()),
        ("judge_failure", pa.string()),
    ]
)
"""The measures of each picture, and the judge's opinion; null where it was not measured or judged."""

_LOOKS = ("brightness", "contrast", "colourfulness")
"""Measures that near-duplicates share, beside the hash of their composition."""

NEIGHBOUR_SCHEMA = pa.schema([("near_duplicate_of", pa.int64())])
"""The number of a job with another prompt and nearly the same picture; null if there is none."""

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
    outcomes, alike = Outcomes(), AlikePictures()
    schema = pa.schema([*JOBS_SCHEMA, *QUALITY_SCHEMA, *NEIGHBOUR_SCHEMA])
    with RowWriter(jobs_file, schema) as jobs_writer, RowWriter(failed_file, FAILED_SCHEMA) as failed_writer:
        for jobs in _job_batches(session):
            measures = [orjson.loads(job.quality or "{}") for job in jobs]
            measured = pa.Table.from_pylist(measures, QUALITY_SCHEMA)
            alike.add(jobs, measured)
            neighbours = pa.nulls(len(jobs), pa.int64())  # known once all are written
            columns = [*_pictures(jobs, session.makers or {}).columns, *measured.columns, neighbours]
            jobs_writer.write(pa.Table.from_arrays(columns, schema=schema))
            failed = [job for job in jobs if job.status is JobStatus.FAILED]
            if failed:
                failed_writer.write(_table(failed, FAILED_SCHEMA))
            outcomes.add(jobs)
    alike.mark(jobs_file)
    return outcomes


class AlikePictures:
    """Finds pictures of different prompts that look the same, once all jobs are written; 36 bytes per job."""

    def __init__(self) -> None:
        self._hashes, self._prompts, self._places = array("Q"), array("q"), array("q")
        self._looks = array("f")
        self._kept: set[int] = set()
        self._rows = 0

    def add(self, jobs: list[Job], measured: pa.Table) -> None:
        """Take the next jobs of the file, with the measures of their pictures or nulls."""
        measures = measured.select(["phash", *_LOOKS]).to_pylist()
        for place, (job, found) in enumerate(zip(jobs, measures, strict=True), self._rows):
            if found["phash"] is not None and job.has_picture:
                self._hashes.append(int(found["phash"], 16))
                self._looks.extend(found[name] or 0.0 for name in _LOOKS)
                self._prompts.append(hash(job.prompt))
                self._places.append(place)
                if job.suspect == KEPT:
                    self._kept.add(place)
        self._rows += len(jobs)

    def mark(self, file: Path) -> None:
        """Add the verdict to the jobs of ``file``, if there are any."""
        places = np.frombuffer(self._places, np.int64)
        prompts = np.frombuffer(self._prompts, np.int64)
        looks = np.frombuffer(self._looks, np.float32).reshape(-1, len(_LOOKS))
        found = near_duplicates(np.frombuffer(self._hashes, np.uint64), prompts, looks)
        neighbours = np.full(self._rows, -1)
        neighbours[places[found >= 0]] = places[found[found >= 0]]
        neighbours[list(self._kept)] = -1
        if not (neighbours >= 0).any():
            return
        copy, start = file.with_suffix(".marked"), 0
        with RowWriter(copy, pq.read_schema(file)) as writer:
            for batch in read_batches(file):
                near = neighbours[start : start + batch.num_rows]
                here = pa.array(near >= 0)
                start += batch.num_rows
                known = batch["suspect"]
                before = pc.if_else(pc.equal(known, ""), "", pc.binary_join_element_wise(known, "", ","))
                more = pc.binary_join_element_wise(before, Verdict.NEAR_DUPLICATE, "")
                suspect = pc.if_else(here, more, known)
                place = batch.schema.get_field_index("suspect")
                table = pa.Table.from_batches([batch]).set_column(place, "suspect", suspect)
                other = table.schema.get_field_index("near_duplicate_of")
                jobs = pa.array(near, pa.int64(), mask=near < 0)
                writer.write(table.set_column(other, "near_duplicate_of", jobs))
        copy.replace(file)


def _job_batches(session: Session) -> Iterator[list[Job]]:
    batches = session.store.all_jobs()

    async def following() -> list[Job] | None:
        return await anext(batches, None)

    while (jobs := session.wait(following)) is not None:
        yield jobs


def _table(jobs: list[Job], schema: pa.Schema) -> pa.Table:
    columns: list[Any] = []
    attributes = [_ATTRIBUTES.get(name, name) for name in schema.names]
    values = zip(*map(attrgetter(*attributes), jobs), strict=True)
    for field, column in zip(schema, values, strict=True):
        if pa.types.is_timestamp(field.type):
            ms = pc.round(pc.multiply(pa.array(column, pa.float64()), 1000.0))
            columns.append(ms.cast(pa.int64()).cast(field.type))
        else:
            values_of = [value or None for value in column] if field.name in _NULLS else column
            columns.append(pa.array(values_of, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _pictures(jobs: list[Job], makers: Mapping[str, str]) -> pa.Table:
    """The rows of jobs.parquet, with the seed of the picture that each job has, and who made it."""
    table = _table(jobs, JOBS_SCHEMA)
    for name, values in (
        ("seed", [job.take_seed for job in jobs]),
        ("suspect", ["" if job.suspect == KEPT else job.suspect for job in jobs]),
        ("made_by", [makers.get(job.route) for job in jobs]),
    ):
        field = JOBS_SCHEMA.field(name)
        table = table.set_column(JOBS_SCHEMA.get_field_index(name), field, pa.array(values, field.type))
    return table


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
    if session.log is not None:
        session.wait(session.log.retire)


def copy_images(session: Session, outcomes: Outcomes) -> None:
    """Give each row its own copy of its image, made by the server."""

    def copy(row: tuple[str, int, str, str, int]) -> None:
        row_id, variant, key, extension, take = row
        session.bucket.copy(image_name(key, extension, take), copy_name(row_id, extension, variant))

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        for batch in _planned(session):
            _, _, extensions, takes = outcomes.of(batch["job"])
            keys = batch["key"].to_pylist()
            rows = zip(batch["id"].to_pylist(), variants_of(batch), keys, extensions, takes, strict=True)
            for _ in threads.map(copy, [row for row in rows if row[3] is not None]):
                pass


def delete_rejected_copies(session: Session, outcomes: Outcomes) -> None:
    """Delete the copies of pictures that a person rejected, whatever their format was."""
    for batch in _planned(session):
        _, error_codes, _, _ = outcomes.of(batch["job"])
        rows = zip(batch["id"].to_pylist(), variants_of(batch), error_codes, strict=True)
        rejected = [(row_id, variant) for row_id, variant, code in rows if code == REJECTED]
        names = [copy_name(row_id, ext, variant) for row_id, variant in rejected for ext in MEDIA_TYPES]
        if names and (refused := session.bucket.try_delete(names)):
            name, code = next(iter(refused.items()))
            get_run_logger().warning(
                "%s of rejected pictures could not be deleted, such as %s (%s).",
                counted(len(refused), "copy", "copies"),
                session.bucket.uri_of(name),
                code,
            )


def _planned(session: Session) -> Iterator[pa.RecordBatch]:
    names = pq.read_schema(session.folder.plan).names
    return read_batches(session.folder.plan, [n for n in ("id", "variant", "key", "job") if n in names])
