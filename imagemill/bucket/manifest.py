"""The manifest: the current catalog, with the outcome of every row."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ConflictError, ImageBucket, copy_name, image_name
from imagemill.bucket.manifest_diff import RETIRED, Changes, Comparison
from imagemill.bucket.superseded import Superseded
from imagemill.catalog.digest_index import DigestIndex, text_digests
from imagemill.catalog.plan import PLAN_SCHEMA
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import Job, JobStatus
from imagemill.media_types import PARQUET
from imagemill.parquet import RowWriter, read_batches

MANIFEST = "manifest.parquet"

_OWN_COLUMNS = (
    "id", "prompt", "negative_prompt", "width", "height", "seed", "steps",
    "key", "status", "uri", "copy_uri", "error_code",
)  # fmt: skip

_CATALOG = b"imagemill.catalog"
_DATE = re.compile(
    r"(?<![0-9])(19|20)[0-9]{2}([-_/.]?)[01][0-9](\2[0-3][0-9]([T_-]?[0-9:]{4,8}Z?)?)?(?![0-9])"
)

_OBJECTS = ("uri", "copy_uri")
_NO_CAST = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


_Ending = tuple[str, str | None, str | None]
"""Status, error code and the extension of the image."""


class Outcomes:
    """The outcome of each job, by number; a million jobs take 4 MB."""

    def __init__(self) -> None:
        self._endings: dict[_Ending, int] = {("rejected", None, None): 0}
        self._of_job = array("i")

    def add(self, jobs: Iterable[Job]) -> None:
        """Add the next jobs, in order of their numbers."""
        endings = self._endings
        for job in jobs:
            status = JobStatus.PENDING if job.status is JobStatus.RUNNING else job.status
            extension = job.image and job.image.rpartition(".")[2]
            self._of_job.append(endings.setdefault((status, job.error_code, extension), len(endings)))

    def of(self, jobs: pa.Array | pa.ChunkedArray) -> tuple[list[str], list[str | None], list[str | None]]:
        """Status, error code and image extension of the jobs with these numbers; null is a rejected row."""
        numbers = jobs.fill_null(-1).to_numpy()
        rejected = numbers < 0
        if rejected.all():
            chosen = np.zeros(len(numbers), np.intc)
        else:
            chosen = np.where(rejected, 0, np.frombuffer(self._of_job, np.intc)[numbers])
        endings = list(self._endings)
        statuses, error_codes, extensions = zip(*endings, strict=True)
        places = chosen.tolist()
        return (
            [statuses[place] for place in places],
            [error_codes[place] for place in places],
            [extensions[place] for place in places],
        )


def write_manifest(
    bucket: ImageBucket, plan: Path, outcomes: Outcomes, file: Path, *, catalog: str, copies: bool
) -> None:
    """Write the catalog as it stands: one row per catalog row, with the outcome of its job.

    Args:
        bucket: where the images are.
        plan: the run's plan.parquet.
        outcomes: those of all jobs.
        file: the manifest to write.
        catalog: the path of the catalog, which the manifest keeps in its schema's metadata.
        copies: whether each row has its own copy of its image.
    """
    schema = pq.read_schema(plan)
    carried = [f for f in schema if f.name not in PLAN_SCHEMA.names]
    names = {field.name: field.name.removeprefix("carried:") for field in carried}
    names.update({f: f"catalog_{n}" for f, n in names.items() if n in _OWN_COLUMNS})
    writer: pq.ParquetWriter | None = None
    try:
        for batch in read_batches(plan):
            planned = pa.Table.from_batches([batch])
            table = _manifest_table(bucket, planned, outcomes, copies=copies)
            for field in carried:
                table = table.append_column(pa.field(names[field.name], field.type), planned[field.name])
            writer = writer or pq.ParquetWriter(file, _known_by(catalog, table.schema), compression="zstd")
            writer.write_table(table)
        if writer is None:
            empty = schema.empty_table()
            table = _manifest_table(bucket, empty, outcomes, copies=copies)
            writer = pq.ParquetWriter(file, _known_by(catalog, table.schema))
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _known_by(catalog: str, schema: pa.Schema) -> pa.Schema:
    return schema.with_metadata({**(schema.metadata or {}), _CATALOG: catalog.encode("utf-8", "replace")})


def refuse_other_catalog(bucket: ImageBucket, catalog: str) -> None:
    """Check that the bucket's manifest, if there is one, is this catalog's or does not name its own.

    Dates in a path do not tell catalogs apart: many are exported anew each day.

    Raises:
        InputError: it is another catalog's.
    """
    with bucket.open(MANIFEST) as file:
        if file is None:
            return
        try:
            metadata = pq.read_schema(file).metadata or {}
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{bucket.uri_of(MANIFEST)} cannot be read ({error}): move it away.") from error
    known = metadata.get(_CATALOG, b"").decode("utf-8", "replace")
    if known and _DATE.sub("", known) != _DATE.sub("", catalog):
        raise InputError(
            f"The manifest in {bucket.uri} is that of the catalog {known!r}, not of {catalog!r}: choose"
            " another output, or replace that manifest with --replace-manifest (output.replace_manifest)."
        )


def _manifest_table(bucket: ImageBucket, planned: pa.Table, outcomes: Outcomes, *, copies: bool) -> pa.Table:
    statuses, error_codes, extensions = outcomes.of(planned["job"])
    uri_of, keys = bucket.uri_of, planned["key"].to_pylist()
    copy_uris: list[str | None] = [None] * len(keys)
    if copies:
        ids = planned["id"].to_pylist()
        copy_uris = [
            extension and uri_of(copy_name(row_id, extension))
            for row_id, extension in zip(ids, extensions, strict=True)
        ]
    own = {
        "status": statuses,
        "uri": [
            extension and uri_of(image_name(key, extension))
            for key, extension in zip(keys, extensions, strict=True)
        ],
        "copy_uri": copy_uris,
        "error_code": error_codes,
    }
    columns = {
        name: pa.array(own[name], pa.string()) if name in own else planned[name] for name in _OWN_COLUMNS
    }
    return pa.table(columns)


def replace_manifest(bucket: ImageBucket, file: Path, *, retire: bool, prune: bool) -> Changes:
    """Replace the bucket's manifest with the one in ``file``, atomically; how they differ.

    With ``retire``, rows of the previous manifest whose ids are gone are kept as retired rows. With
    ``prune``, images that no row uses any more are deleted. Afterwards, ``file`` is what the bucket has.

    Raises:
        StoreUnavailableError: another run keeps replacing it.
    """
    before, joined = file.with_suffix(".before.parquet"), file.with_suffix(".joined.parquet")
    now = Comparison(file)
    for _ in range(5):
        etag = bucket.download(MANIFEST, before)
        if etag is None:
            pq.write_table(pq.read_schema(file).empty_table(), before)
        pruned = frozenset[str]()
        try:
            if retire:
                changes = _join(now, before, file, joined, prune=prune)
                superseded = Superseded(bucket, file.parent)
                unused = _unused(bucket, superseded.names, before, joined)
                superseded.remember(unused)
                pruned = unused if prune else pruned
            else:
                changes = now.changes(before)
            bucket.replace(joined if retire else file, MANIFEST, PARQUET, etag)
        except ConflictError:
            continue
        finally:
            before.unlink()
        if retire:
            joined.replace(file)
        if pruned:
            bucket.delete(sorted(pruned))
            with suppress(ConflictError):  # names that stay in the list too long do no harm
                superseded.remember(frozenset())
        return replace(changes, pruned=sum(name.startswith("images/") for name in pruned))
    raise StoreUnavailableError("Other runs keep replacing the manifest of this output.")


def _join(now: Comparison, before: Path, manifest: Path, joined: Path, *, prune: bool) -> Changes:
    """Write a manifest's rows to another file, followed by the retired rows of the previous manifest."""
    schema = pq.read_schema(manifest)
    with RowWriter(joined, schema) as writer:
        for batch in read_batches(manifest):
            writer.write(pa.Table.from_batches([batch]))
        return now.changes(before, lambda lost: writer.write(_retired_rows(lost, schema, pruned=prune)))


def _retired_rows(rows: pa.RecordBatch, schema: pa.Schema, *, pruned: bool) -> pa.Table:
    """Rows of the previous manifest in the columns of this one."""
    columns = []
    for field in schema:
        if field.name == "status":
            columns.append(pa.array([RETIRED] * rows.num_rows, field.type))
        elif field.name not in rows.schema.names or (pruned and field.name in {"uri", "copy_uri"}):
            columns.append(pa.nulls(rows.num_rows, field.type))
        else:
            try:
                columns.append(rows[field.name].cast(field.type))
            except _NO_CAST:  # a carried column that has become another type
                columns.append(pa.nulls(rows.num_rows, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _unused(bucket: ImageBucket, superseded: frozenset[str], before: Path, manifest: Path) -> frozenset[str]:
    """The superseded objects, and those of the previous manifest, that no row uses any more."""
    used = DigestIndex()
    for names in _objects(bucket, manifest):
        used.number(text_digests(names))
    unused = set[str]()
    for names in chain([sorted(superseded)], _objects(bucket, before)):
        places = used.find(text_digests(names))
        unused.update(name for name, place in zip(names, places, strict=True) if place < 0)
    return frozenset(unused)


def _objects(bucket: ImageBucket, manifest: Path) -> Iterator[list[str]]:
    """The objects in a manifest's rows, by their names below the output prefix, in batches."""
    root = bucket.uri_of("")
    columns = [name for name in _OBJECTS if name in pq.read_schema(manifest).names]
    for batch in read_batches(manifest, columns):
        for uris in batch.columns:
            yield [uri.removeprefix(root) for uri in uris.to_pylist() if uri and uri.startswith(root)]
