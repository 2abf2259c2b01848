"""The records of a run: one row per job, the dead letters, the rows' own copies of their images."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
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
from imagemill.jobs import KEPT, TERMINAL, has_picture, next_take
from imagemill.media_types import JSON_LINES, PARQUET
from imagemill.parquet import RowWriter, read_batches
from imagemill.quality.measures import Measures
from imagemill.quality.near_duplicates import near_duplicates
from imagemill.quality.verdicts import Verdict
from imagemill.runs.session import Session
from imagemill.takes import REJECTED, seed_of
from imagemill.usd import plus

_COPIES_AT_ONCE = 16
_NULLS = frozenset({"cost_source", "varied", "route", "made_by"})
"""Columns in which "" becomes null."""

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

_FIELDS = [*(name for name in JOBS_SCHEMA.names if name != "made_by"), "prompt", "quality"]
"""The fields of a job that its row in jobs.parquet is made from."""

_UNIQUE = frozenset({"number", "id", "key", "request_id", "image", "started_at", "finished_at", "seed"})
"""Columns that hardly repeat a value."""

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
        ("unanswered", pa.int32()),
        ("unanswered_usd", pa.float64()),
        ("request_id", pa.string()),
    ]
)


@contextmanager
def published_records(session: Session) -> Iterator[Outcomes]:
    """Publish the run's records: its jobs, dead letters, rejected rows and log; the jobs' outcomes.

    Uploads go on while the block runs. When it ends, all of them are in the bucket.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """
    with ThreadPoolExecutor(2) as threads:
        log = threads.submit(_upload, session, "log.jsonl", JSON_LINES)  # the largest of them, and written
        outcomes, alike = _write_records(session)
        others = threads.submit(_upload_records, session, alike)
        yield outcomes
        others.result()
        log.result()
    if session.log is not None:
        session.wait(session.log.retire)


def _upload_records(session: Session, alike: AlikePictures) -> None:
    alike.mark(session.folder.path / "jobs.parquet")
    for name in ("jobs.parquet", "failed.parquet", "rejected.parquet"):
        _upload(session, name, PARQUET)


def _upload(session: Session, name: str, media_type: str) -> None:
    session.bucket.upload(session.folder.path / name, f"runs/{session.settings.run_id}/{name}", media_type)


def _write_records(session: Session) -> tuple[Outcomes, AlikePictures]:
    """Write jobs.parquet and failed.parquet into the run's folder; pictures that look alike are unmarked."""
    jobs_file, failed_file = session.folder.path / "jobs.parquet", session.folder.path / "failed.parquet"
    outcomes, alike = Outcomes(), AlikePictures()
    schema = pa.schema([*JOBS_SCHEMA, *QUALITY_SCHEMA, *NEIGHBOUR_SCHEMA])
    with RowWriter(jobs_file, schema, unique=_UNIQUE) as writer:
        for jobs in _columns_of(session, _FIELDS):
            measured = _measures(jobs["quality"])
            alike.add(jobs, measured)
            neighbours = pa.nulls(jobs.num_rows, pa.int64())  # known once all are written
            columns = [*_pictures(jobs, session.makers or {}).columns, *measured.columns, neighbours]
            writer.write(pa.Table.from_arrays(columns, schema=schema))
            outcomes.add(jobs)
    with RowWriter(failed_file, FAILED_SCHEMA) as writer:
        names = [*FAILED_SCHEMA.names, "judge_usd"]
        for failed in _columns_of(session, names, failed_only=True) if outcomes.has_failed else ():
            writer.write(_table(failed, FAILED_SCHEMA))
    return outcomes, alike


def _measures(texts: pa.Array) -> pa.Table:
    """The measures and opinions that jobs have as JSON."""
    if pc.max(pc.binary_length(texts)).as_py() == 0:
        return pa.table([pa.nulls(len(texts), field.type) for field in QUALITY_SCHEMA], QUALITY_SCHEMA)
    return pa.Table.from_pylist([orjson.loads(text or "{}") for text in texts.to_pylist()], QUALITY_SCHEMA)


class AlikePictures:
    """Finds pictures of different prompts that look the same, once all jobs are written; 36 bytes per job."""

    def __init__(self) -> None:
        self._hashes, self._prompts, self._places = array("Q"), array("q"), array("q")
        self._looks = array("f")
        self._kept: set[int] = set()
        self._rows = 0

    def add(self, jobs: pa.RecordBatch, measured: pa.Table) -> None:
        """Take the next jobs of the file, with the measures of their pictures or nulls."""
        known = np.flatnonzero(measured["phash"].is_valid())
        measures = measured.select(["phash", *_LOOKS]).take(known).to_pylist()
        chosen = jobs.select(["status", "image", "suspect", "prompt"]).take(pa.array(known)).to_pylist()
        for place, found, job in zip(known.tolist(), measures, chosen, strict=True):
            if has_picture(job["status"], job["image"], job["suspect"]):
                self._hashes.append(int(found["phash"], 16))
                self._looks.extend(found[name] or 0.0 for name in _LOOKS)
                self._prompts.append(hash(job["prompt"]))
                self._places.append(self._rows + place)
                if job["suspect"] == KEPT:
                    self._kept.add(self._rows + place)
        self._rows += measured.num_rows

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
        with RowWriter(copy, pq.read_schema(file), unique=_UNIQUE) as writer:
            for batch in read_batches(file):
                near = neighbours[start : start + batch.num_rows]
                here = pa.array(near >= 0)
                start += batch.num_rows
                known = batch["suspect"]
                before = pc.if_else(pc.equal(known, ""), "", pc.binary_join_element_wise(known, "", ","))
                more = pc.binary_join_element_wise(before, Verdict.NEAR_DUPLICATE, "")
                suspect = pc.if_else(here, more, known)
                table = _with(pa.Table.from_batches([batch]), "suspect", suspect)
                jobs = pa.array(near, pa.int64(), mask=near < 0)
                writer.write(_with(table, "near_duplicate_of", jobs))
        copy.replace(file)


def _columns_of(
    session: Session, names: Sequence[str], *, failed_only: bool = False
) -> Iterator[pa.RecordBatch]:
    """The jobs' columns in batches, each of which is read while the one before it is worked on."""
    batches = session.store.all_columns(names, failed_only=failed_only)

    async def following() -> pa.RecordBatch | None:
        return await anext(batches, None)

    under_way = session.portal.start_task_soon(following)
    while (columns := under_way.result()) is not None:
        under_way = session.portal.start_task_soon(following)
        yield columns


def _table(jobs: pa.RecordBatch, schema: pa.Schema, **more: pa.Array) -> pa.Table:
    """Jobs in the columns of a schema, and ``more`` columns; ``cost_usd`` includes what the judge cost."""
    if pc.any(pc.not_equal(jobs["judge_usd"], 0.0)).as_py():
        costs = map(plus, jobs["cost_usd"].to_pylist(), jobs["judge_usd"].to_pylist())
        more["cost_usd"] = pa.array(costs, pa.float64())
    columns: list[Any] = []
    for field in schema:
        column = more[field.name] if field.name in more else jobs[field.name]
        if pa.types.is_timestamp(field.type):
            column = pc.round(pc.multiply(column, 1000.0)).cast(pa.int64())
        elif field.name in _NULLS:
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, field.type), column)
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _pictures(jobs: pa.RecordBatch, makers: Mapping[str, str]) -> pa.Table:
    """The rows of jobs.parquet, with the seed of the picture that each job has, and who made it."""
    if makers:
        made_by = pa.array(map(makers.get, jobs["route"].to_pylist()), pa.string())
    else:
        made_by = pa.nulls(jobs.num_rows, pa.string())
    table = _table(jobs, JOBS_SCHEMA, made_by=made_by)
    suspects = table["suspect"]
    table = _with(table, "suspect", pc.if_else(pc.equal(suspects, KEPT), "", suspects))
    images = table["image"]
    ended = pc.is_in(table["status"], pa.array([str(status) for status in TERMINAL]))
    is_first = pc.and_(ended, pc.less_equal(pc.count_substring(images, "."), 1))  # with the job's own seed
    later = np.flatnonzero(pc.and_(images.is_valid(), pc.invert(is_first)).fill_null(False).to_numpy())
    if later.size:
        seeds = jobs["seed"].to_pylist()
        for place in later.tolist():
            take = next_take(jobs["status"][place].as_py(), jobs["image"][place].as_py())
            seeds[place] = seed_of(seeds[place], take)
        table = _with(table, "seed", pa.array(seeds, pa.int64()))
    return table


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)


def copy_images(session: Session, outcomes: Outcomes) -> None:
    """Give each row its own copy of its image, made by the server."""

    def copy(row: tuple[str, int, str, str, int]) -> None:
        row_id, variant, key, extension, take = row
        session.bucket.copy(image_name(key, extension, take), copy_name(row_id, extension, variant))

    with ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        for batch in _planned(session):
            endings = outcomes.of(batch["job"])
            columns = (batch["id"], batch["key"], endings["extension"], endings["take"])
            ids, keys, extensions, takes = (column.to_pylist() for column in columns)
            rows = zip(ids, variants_of(batch).to_pylist(), keys, extensions, takes, strict=True)
            for _ in threads.map(copy, [row for row in rows if row[3] is not None]):
                pass


def delete_rejected_copies(session: Session, outcomes: Outcomes) -> None:
    """Delete the copies of pictures that a person rejected, whatever their format was."""
    for batch in _planned(session):
        error_codes = outcomes.of(batch["job"])["error_code"].to_pylist()
        rows = zip(batch["id"].to_pylist(), variants_of(batch).to_pylist(), error_codes, strict=True)
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
