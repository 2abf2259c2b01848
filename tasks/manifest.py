"""The manifest: the catalog as it stands, every row with what became of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from blocks.bucket import ConflictError, ImageBucket, copy_name
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


@dataclass(frozen=True, slots=True)
class Changes:
    """A manifest against the one before, in rows; ``pruned`` counts images."""

    added: int
    changed: int
    unchanged: int
    retired: int
    pruned: int


class Outcomes:
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
        name: pa.array(own[name], pa.string()) if name in own else planned[name] for name in _OWN_COLUMNS
    }
    return pa.table(columns)


def replace_manifest(session: Session, *, retire: bool, prune: bool) -> Changes:
    """Put the run's manifest in the place of the one before, in one piece; how they differ.

    Raises:
        StoreUnavailableError: another run keeps replacing it.
    """
    bucket, file = session.bucket, session.folder.path / MANIFEST
    own = pq.read_table(file)
    for _ in range(5):
        found = bucket.read_version(MANIFEST)
        before = own.schema.empty_table() if found is None else pq.read_table(pa.BufferReader(found[0]))
        changes, retired = _compare(before, own)
        pruned = frozenset[str]()
        try:
            if retire:
                whole = pa.concat_tables([own, _retired_rows(retired, own.schema, pruned=prune)])
                pq.write_table(whole, file, compression="zstd")
                superseded = Superseded(bucket, session.folder.path)
                unused = (superseded.names | _objects(bucket, before)) - _objects(bucket, whole)
                superseded.remember(unused)
                pruned = unused if prune else pruned
            bucket.replace(file, MANIFEST, PARQUET, found and found[1])
        except ConflictError:
            continue
        if pruned:
            bucket.delete(sorted(pruned))
            with suppress(ConflictError):  # names that are remembered too long harm nobody
                superseded.remember(frozenset())
        return Changes(*changes, pruned=sum(name.startswith("images/") for name in pruned))
    raise StoreUnavailableError("Other runs keep replacing the manifest of this output.")


def _compare(before: pa.Table, now: pa.Table) -> tuple[tuple[int, int, int, int], pa.Table]:
    """Rows added, changed, unchanged and retired, and all rows of before that are in the catalog no more."""
    active = before.filter(pc.not_equal(before["status"], RETIRED))
    keys = dict(zip(active["id"].to_pylist(), active["key"].to_pylist(), strict=True))
    added = changed = unchanged = 0
    ids: set[str] = set()
    for row_id, key in zip(now["id"].to_pylist(), now["key"].to_pylist(), strict=True):
        ids.add(row_id)
        if key is None:
            continue  # rejected
        if row_id not in keys:
            added += 1
        elif keys[row_id] == key:
            unchanged += 1
        else:
            changed += 1
    gone = [row_id not in ids for row_id in before["id"].to_pylist()]
    retired = before.filter(pa.array(gone, pa.bool_()))
    return (added, changed, unchanged, len(keys.keys() - ids)), retired


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
    uris = [
        uri
        for column in ("uri", "copy_uri")
        if column in table.schema.names
        for uri in table[column].to_pylist()
    ]
    return frozenset(uri.removeprefix(root) for uri in uris if uri and uri.startswith(root))
