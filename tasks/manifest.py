"""The manifest: the catalog as it stands, every row with what became of it."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blocks.bucket import ConflictError, ImageBucket, copy_name, image_name
from blocks.errors import StoreUnavailableError
from blocks.jobs import Job, JobStatus
from tasks.plan import PLAN_SCHEMA
from tasks.run_folder import PARQUET
from tasks.session import Session
from tasks.superseded import Superseded

MANIFEST = "manifest.parquet"
RETIRED = "retired"

_OWN_COLUMNS = (
    "id", "prompt", "negative_prompt", "width", "height", "seed", "steps",
    "key", "status", "uri", "copy_uri", "error_code",
)  # fmt: skip


_COMPARED = ("id", "key", "status")
_OBJECTS = ("uri", "copy_uri")


@dataclass(frozen=True, slots=True)
class Changes:
    """A manifest against the one before, in rows; ``pruned`` counts images."""

    added: int
    changed: int
    unchanged: int
    retired: int
    pruned: int


class Outcomes:
    """How each job ended, by its number: all that the manifest needs of a million jobs, in 24 MB."""

    def __init__(self) -> None:
        self.status: list[str] = []
        self.error_code: list[str | None] = []
        self._extension: list[str | None] = []

    def add(self, job: Job) -> None:
        unfinished = job.status is JobStatus.RUNNING
        self.status.append(JobStatus.PENDING if unfinished else job.status)
        self.error_code.append(job.error_code and sys.intern(job.error_code))
        self._extension.append(job.image and sys.intern(job.image.rpartition(".")[2]))

    def image(self, number: int | None, key: str | None) -> str | None:
        """The image of the job of this number and key, below the output prefix; None where it has none."""
        extension = None if number is None else self._extension[number]
        return extension and key and image_name(key, extension)


def write_manifest(session: Session, outcomes: Outcomes, file: Path) -> None:
    """The catalog as it stands: a row a catalog row, with what became of it."""
    plan = pq.ParquetFile(session.folder.plan)
    carried = [f for f in plan.schema_arrow if f.name not in PLAN_SCHEMA.names]
    names = {field.name: field.name.removeprefix("carried:") for field in carried}
    names.update({f: f"catalog_{n}" for f, n in names.items() if n in _OWN_COLUMNS})
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


def _manifest_table(session: Session, planned: pa.Table, outcomes: Outcomes, *, copies: bool) -> pa.Table:
    jobs: list[int | None] = planned["job"].to_pylist()
    images = list(map(outcomes.image, jobs, planned["key"].to_pylist()))
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
        name: pa.array(own[name], pa.string()) if name in own else planned[name] for name in _OWN_COLUMNS
    }
    return pa.table(columns)


def replace_manifest(session: Session, *, retire: bool, prune: bool) -> Changes:
    """Put the run's manifest in the place of the one before, in one piece; how they differ.

    Raises:
        StoreUnavailableError: another run keeps replacing it.
    """
    bucket, file = session.bucket, session.folder.path / MANIFEST
    wanted = [*_COMPARED, *(_OBJECTS if retire else ())]
    own = pq.read_table(file, columns=wanted)
    rows_file = file
    for _ in range(5):
        found = bucket.read_version(MANIFEST)
        before = own.schema.empty_table()
        if found is not None:
            names = pq.read_schema(pa.BufferReader(found[0])).names
            columns = names if retire else [name for name in wanted if name in names]
            before = pq.read_table(pa.BufferReader(found[0]), columns=columns)
        changes, retired = _compare(before, own)
        pruned = frozenset[str]()
        try:
            if retire:
                rows_file = file.with_suffix(".retired.parquet")
                _append(file, retired, rows_file, pruned=prune)
                used = _objects(bucket, own) | (frozenset() if prune else _objects(bucket, retired))
                superseded = Superseded(bucket, session.folder.path)
                unused = (superseded.names | _objects(bucket, before)) - used
                superseded.remember(unused)
                pruned = unused if prune else pruned
            bucket.replace(rows_file, MANIFEST, PARQUET, found and found[1])
        except ConflictError:
            continue
        rows_file.replace(file)
        if pruned:
            bucket.delete(sorted(pruned))
            with suppress(ConflictError):  # names that are remembered too long harm nobody
                superseded.remember(frozenset())
        return Changes(*changes, pruned=sum(name.startswith("images/") for name in pruned))
    raise StoreUnavailableError("Other runs keep replacing the manifest of this output.")


def _append(manifest: Path, retired: pa.Table, file: Path, *, pruned: bool) -> None:
    """A manifest with the retired rows of the one before after its own."""
    source = pq.ParquetFile(manifest)
    schema = source.schema_arrow
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in source.iter_batches():
            writer.write_batch(batch)
        writer.write_table(_retired_rows(retired, schema, pruned=pruned))


def _compare(before: pa.Table, now: pa.Table) -> tuple[tuple[int, int, int, int], pa.Table]:
    """Rows added, changed, unchanged and retired, and all rows of before that are in the catalog no more."""
    active = before.filter(pc.not_equal(before["status"], RETIRED))
    newest_first = pa.array(range(active.num_rows - 1, -1, -1), pa.int64())
    known = active.select(["id", "key"]).take(newest_first)  # of rows with one id the last one counts
    place = pc.index_in(now["id"], value_set=known["id"].combine_chunks())
    planned = pc.is_valid(now["key"])  # the others were rejected
    added = pc.sum(pc.and_(planned, pc.is_null(place))).as_py() or 0
    unchanged = pc.sum(pc.equal(known["key"].take(place), now["key"])).as_py() or 0
    changed = (pc.sum(planned).as_py() or 0) - added - unchanged
    ids = now["id"].combine_chunks()
    lost = known["id"].filter(pc.invert(pc.is_in(known["id"], value_set=ids)))
    retired = before.filter(pc.invert(pc.is_in(before["id"], value_set=ids)))
    return (added, changed, unchanged, pc.count_distinct(lost).as_py()), retired


def _retired_rows(rows: pa.Table, schema: pa.Schema, *, pruned: bool) -> pa.Table:
    """Rows of an earlier manifest as this one keeps them; columns it does not have are dropped."""
    columns = []
    for field in schema:
        if field.name == "status":
            columns.append(pa.array([RETIRED] * rows.num_rows, field.type))
        elif field.name not in rows.schema.names or (pruned and field.name in {"uri", "copy_uri"}):
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            try:
                columns.append(rows[field.name].cast(field.type).combine_chunks())
            except pa.ArrowInvalid:  # a carried column that has become another type
                columns.append(pa.nulls(rows.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _objects(bucket: ImageBucket, table: pa.Table) -> frozenset[str]:
    """The objects that the rows of a manifest have, by their names below the output prefix."""
    root = bucket.uri_of("")
    uris = [uri for column in _OBJECTS if column in table.schema.names for uri in table[column].to_pylist()]
    return frozenset(uri.removeprefix(root) for uri in uris if uri and uri.startswith(root))
