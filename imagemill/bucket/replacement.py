"""Replaces the manifest of an output, and deletes the images that no row uses any more."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.finished_rows import FinishedRows
from imagemill.bucket.image_bucket import ConflictError, ImageBucket
from imagemill.bucket.manifest import MANIFEST, OWN_COLUMNS
from imagemill.bucket.manifest_diff import RETIRED, VARIANT, Changes, Comparison, has_foreign_variant
from imagemill.bucket.superseded import Superseded
from imagemill.catalog.columns import common_type, plain
from imagemill.catalog.digest_index import DigestIndex, text_digests
from imagemill.catalog.values import carried
from imagemill.durable import write_whole
from imagemill.errors import StoreUnavailableError
from imagemill.media_types import PARQUET
from imagemill.parquet import RowWriter, read_batches

_OBJECTS = ("uri", "copy_uri")
_PRUNE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("superseded_at", pa.timestamp("ms", "UTC")),
        ("delete_after", pa.timestamp("ms", "UTC")),
        ("outcome", pa.string()),
    ]
)


class Missing(StrEnum):
    """What happens to rows of the previous manifest whose ids are not in the new one."""

    DROP = "drop"
    """They leave the manifest, which is the catalog as it is now."""
    KEEP = "keep"
    """They stay as they are: a run of part of a catalog merges its rows."""
    RETIRE = "retire"
    """They stay, marked as retired."""


@dataclass(frozen=True, slots=True)
class Prune:
    """Deletes objects that were superseded ``after_days`` ago.

    ``record`` names the object below the output prefix that lists what is deleted, when, and how it went.
    """

    after_days: float
    record: str


def replace_manifest(
    bucket: ImageBucket, file: Path, *, missing: Missing = Missing.DROP, prune: Prune | None = None
) -> Changes:
    """Replace the bucket's manifest with the one in ``file``, atomically; how they differ.

    A merge leaves the rows alone that a newer run has finished. What changed with a manifest whose write got
    no answer, in this call or an earlier one, is counted. Objects that no row of the manifest uses any more
    are remembered as superseded; ``prune`` deletes those whose grace period is over. Afterwards, ``file`` is
    what the bucket has.

    Raises:
        StoreUnavailableError: another run keeps replacing it.
    """
    target = file if missing is Missing.DROP else file.with_suffix(".joined.parquet")
    before = file.with_suffix(".before.parquet")
    attempted = file.with_suffix(".attempted.json")
    now = Comparison(file)
    written: _Attempt | None = None
    for _ in range(5):
        etag = bucket.download(MANIFEST, before)
        try:
            # The bucket may have done what it gave no answer to: then, a second attempt is refused.
            if written is None or etag is None or not filecmp.cmp(before, target, shallow=False):
                written = None
                known = _changes_without_answer(attempted, before)
                _make_comparable(before, file, etag)
                attempt = _attempt(bucket, now, before, file, target, missing, prune)
                if known is not None:
                    attempt = replace(attempt, changes=known)
                attempt.superseded.remember(attempt.unused)
                written = attempt
                write_whole(attempted, orjson.dumps([_digest_of(target), asdict(attempt.changes)]))
                bucket.replace(target, MANIFEST, PARQUET, etag)
        except ConflictError:
            continue
        finally:
            before.unlink(missing_ok=True)
        attempted.unlink(missing_ok=True)
        if target is not file:
            target.replace(file)
        if prune is None:
            return written.changes
        return _pruned(bucket, written, prune, file.parent / "prune.parquet")
    raise StoreUnavailableError("Other runs keep replacing the manifest of this output.")


def _changes_without_answer(attempted: Path, before: Path) -> Changes | None:
    """What this run has changed already, if the bucket has its manifest though it never said so."""
    try:
        digest, changes = orjson.loads(attempted.read_bytes())
        return Changes(**changes) if before.exists() and digest == _digest_of(before) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _digest_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What a manifest changes, and the objects that no row of it uses: all, and those to be deleted now."""

    changes: Changes
    superseded: Superseded
    unused: Mapping[str, datetime]
    due: frozenset[str]


def _make_comparable(before: Path, file: Path, etag: str | None) -> None:
    if etag is None:
        pq.write_table(pq.read_schema(file).empty_table(), before)
    elif has_foreign_variant(pq.read_schema(before)):
        _rename_variant(before)


def _attempt(
    bucket: ImageBucket,
    now: Comparison,
    before: Path,
    file: Path,
    target: Path,
    missing: Missing,
    prune: Prune | None,
) -> _Attempt:
    """Write the new manifest to ``target``, from the one in ``file`` and the bucket's in ``before``."""
    at = datetime.now(UTC).replace(microsecond=0)
    superseded = Superseded(bucket, file.parent)
    due = frozenset[str]()
    if missing is Missing.KEEP:
        changes = _merge(now, before, file, target)
        unused = _unused(bucket, superseded.since, before, target, at)
    else:
        unused = _unused(bucket, superseded.since, before, file, at)
        due = _due(unused, prune, at)
        retire = missing is Missing.RETIRE
        changes = _retire(now, before, file, target, bucket, due) if retire else now.changes(before)
    return _Attempt(changes, superseded, unused, due)


def _rename_variant(manifest: Path) -> None:
    """Rename the catalog's own column ``variant`` in a manifest of version 0.1, as this version would."""
    schema, renamed = pq.read_schema(manifest), manifest.with_suffix(".renamed.parquet")
    name = f"catalog_{VARIANT}"
    while name in schema.names:
        name = f"catalog_{name}"
    names = [name if each == VARIANT else each for each in schema.names]
    schema = pa.schema([each.with_name(name) for each, name in zip(schema, names, strict=True)])
    with RowWriter(renamed, schema) as writer:
        for batch in read_batches(manifest):
            writer.write(pa.table(batch.columns, schema))
    renamed.replace(manifest)


def _due(unused: Mapping[str, datetime], prune: Prune | None, at: datetime) -> frozenset[str]:
    if prune is None:
        return frozenset()
    until = at - timedelta(days=prune.after_days)
    return frozenset(name for name, since in unused.items() if since <= until)


def _pruned(bucket: ImageBucket, written: _Attempt, prune: Prune, file: Path) -> Changes:
    """Delete what is due. The list of it is in the bucket before the first object is deleted."""
    unused, due = written.unused, written.due

    def publish(outcomes: Mapping[str, str]) -> None:
        names = sorted(unused)
        grace = timedelta(days=prune.after_days)
        columns = [
            [bucket.uri_of(name) for name in names],
            [unused[name] for name in names],
            [unused[name] + grace for name in names],
            [outcomes.get(name, "waiting") for name in names],
        ]
        pq.write_table(pa.table(columns, _PRUNE_SCHEMA), file, compression="zstd")
        bucket.upload(file, prune.record, PARQUET)

    publish(dict.fromkeys(due, "due"))
    refused = bucket.try_delete(sorted(due)) if due else {}
    deleted = due.difference(refused)
    if due:
        publish(
            {**dict.fromkeys(due, "deleted"), **{n: f"not deleted: {code}" for n, code in refused.items()}}
        )
        with suppress(ConflictError):  # names that stay in the list too long do no harm
            written.superseded.remember(
                {name: since for name, since in unused.items() if name not in deleted}
            )
    return replace(
        written.changes,
        pruned=_images(deleted),
        prunable=_images(unused.keys() - due),
        prune_failed=len(refused),
    )


def _images(names: Iterator[str] | frozenset[str] | set[str]) -> int:
    return sum(name.startswith("images/") for name in names)


def _merge(now: Comparison, before: Path, manifest: Path, merged: Path) -> Changes:
    """Write a manifest's rows to another file, and after them the previous manifest's other rows."""
    schema = _with_columns_of(pq.read_schema(manifest), pq.read_schema(before))
    finished = FinishedRows(before, manifest)
    if finished.is_newer:  # than this run, whose rows do not make the manifest its own
        schema = schema.with_metadata(finished.schema.metadata)
    prompts = DigestIndex()
    with RowWriter(merged, schema) as writer:
        for batch in read_batches(manifest):
            prompts.number(text_digests(batch["prompt"]))
            writer.write(finished.kept(_fitted(batch, schema)))

        def keep(rows: pa.RecordBatch) -> None:
            is_repaired = pa.array(prompts.places(text_digests(rows["prompt"])) >= 0)
            others = rows.filter(pc.or_(rows["id"].is_valid(), pc.invert(is_repaired)))
            writer.write(_fitted(others, schema))

        changes = now.changes(before, keep)
    return replace(changes, retired=0)


def _retire(
    now: Comparison, before: Path, manifest: Path, joined: Path, bucket: ImageBucket, due: frozenset[str]
) -> Changes:
    """Write a manifest's rows to another file, and after them the previous manifest's other rows as retired.

    Objects that are ``due`` to be deleted leave them.
    """
    schema = _with_columns_of(pq.read_schema(manifest), pq.read_schema(before))
    root = bucket.uri_of("")

    def retired(rows: pa.RecordBatch) -> pa.Table:
        table = _fitted(rows, schema)
        columns = {name: table[name] for name in schema.names}
        columns["status"] = pa.array([RETIRED] * rows.num_rows, pa.string())
        for name in _OBJECTS:
            uris = table[name].to_pylist()
            left = [uri if uri and uri.removeprefix(root) not in due else None for uri in uris]
            columns[name] = pa.array(left, pa.string())
        return pa.table(columns, schema)

    with RowWriter(joined, schema) as writer:
        for batch in read_batches(manifest):
            writer.write(_fitted(batch, schema))
        return now.changes(before, lambda lost: writer.write(retired(lost.filter(lost["id"].is_valid()))))


def _with_columns_of(schema: pa.Schema, before: pa.Schema) -> pa.Schema:
    """A manifest's schema, and the previous one's columns that it lacks: other rows still have them.

    Where a carried column has become another type, it gets one that holds the values of both.
    """
    for field in before:
        place = schema.get_field_index(field.name)
        if place < 0:
            schema = schema.append(field)
        elif field.name not in OWN_COLUMNS:
            kind = common_type(plain(schema.field(place).type), plain(field.type))
            schema = schema.set(place, pa.field(field.name, kind))
    return schema


def _fitted(rows: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Rows of either manifest in the columns of both."""
    columns = [
        carried(rows[field.name], field.type, field.name, {})
        if field.name in rows.schema.names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _unused(
    bucket: ImageBucket, superseded: Mapping[str, datetime], before: Path, manifest: Path, at: datetime
) -> dict[str, datetime]:
    """The superseded objects and those of the previous manifest that no row uses, and since when."""
    known = pa.array([bucket.uri_of(name) for name in sorted(superseded)], pa.string())
    candidates = DigestIndex()
    for uris in chain([known], _displaced(before, manifest)):
        candidates.number(text_digests(uris))
    if not len(candidates):
        return {}
    is_used = np.zeros(len(candidates) + 1, bool)  # the last one stands for all others
    for batch in read_batches(manifest, _object_columns(manifest)):
        for uris in batch.columns:
            is_used[candidates.places(text_digests(uris))] = True
    root, unused = bucket.uri_of(""), dict[str, datetime]()
    for uris in chain([known], _displaced(before, manifest)):
        left = uris.filter(pa.array(~is_used[candidates.places(text_digests(uris))]))
        for uri in left.to_pylist():
            if uri.startswith(root):
                name = uri.removeprefix(root)
                unused.setdefault(name, superseded.get(name, at))
    return unused


def _displaced(before: Path, manifest: Path) -> Iterator[pa.Array]:
    """The objects of the previous manifest but for those that the same row has in the new one, in batches."""
    columns = _object_columns(before)
    for then, now in zip_longest(read_batches(before, columns), read_batches(manifest, columns)):
        for name in columns if then else ():
            uris = then[name]
            if now and now.num_rows == then.num_rows:
                uris = uris.filter(pc.invert(pc.equal(uris, now[name]).fill_null(False)))
            yield uris.drop_null()


def _object_columns(manifest: Path) -> list[str]:
    return [name for name in _OBJECTS if name in pq.read_schema(manifest).names]
