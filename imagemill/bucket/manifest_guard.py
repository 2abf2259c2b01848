"""Compares a plan with the manifest that it would replace, before anything is bought.

A refresh of an empty, truncated or wrong catalog would retire the rows of the real one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.manifest import (
    CATALOG_METADATA,
    MANIFEST,
    OWN_COLUMNS,
    Publisher,
    published_by,
    used_columns,
)
from imagemill.bucket.manifest_diff import RETIRED, identities, identity_columns
from imagemill.catalog.digest_index import DigestIndex, text_digests
from imagemill.errors import InputError
from imagemill.parquet import read_batches
from imagemill.settings import RefreshSettings
from imagemill.takes import picture_of

HARDLY = 0.1
"""Two catalogs that share less than this of the smaller one's rows are not the same one."""

_DATE = re.compile(
    r"(?<![0-9])(19|20)[0-9]{2}([-_/.]?)[01][0-9](\2[0-3][0-9]([T_-]?[0-9:]{4,8}Z?)?)?(?![0-9])"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a plan stands to the manifest at its output. Retired rows do not count.

    ``usable`` are the plan's rows that can become images, ``rows`` those of the manifest. Of these,
    ``retired`` have left the catalog, and ``rejected`` are in it but cannot be used. ``shared`` are the rows
    of the manifest that the plan can use, also those that were rejected before and are repaired now: in a
    rejected.parquet those of a rejected prompt, too, as their ids may be what was repaired. Of the
    manifest's ``images``, no row of the plan uses ``unused``. ``by`` is what identifies a row: its id, or its
    prompt if the catalog has no ids. ``changed`` rows of the manifest would get another image.
    ``newly_used`` are the catalog's columns, by imagemill's names, that the manifest only carries. ``taken``
    are ids in a rejected.parquet that still are those of other rows, whose images would be replaced.
    """

    uri: str
    known_as: str
    usable: int
    rows: int
    shared: int
    retired: int
    rejected: int
    images: int
    unused: int
    by: str
    changed: int
    newly_used: Mapping[str, str]
    taken: Sequence[str] = ()

    def is_of_other_catalog(self, path: str) -> bool:
        """Whether the manifest is another catalog's, which may have moved, and may have no ids."""
        if self.by == "prompts" and _without_dates(self.known_as) in {"", _without_dates(path)}:
            return False
        return self.shared < HARDLY * min(self.usable, self.rows)


def _without_dates(path: str) -> str:
    return _DATE.sub("", path)


def standing(
    bucket: ImageBucket, plan: Path, matched: Mapping[str, str], *, repaired: bool = False
) -> Standing | None:
    """Compare a plan with the manifest; None where there is no manifest, or none with rows in use.

    Args:
        bucket: where the manifest is.
        plan: the plan.parquet.
        matched: the catalog's columns that are used because of their names, in whatever capitals.
        repaired: whether the plan is that of a rejected.parquet.

    Raises:
        InputError: the manifest cannot be read.
    """
    with bucket.open(MANIFEST) as file:
        if file is None:
            return None
        planned = _Planned(plan, repaired=repaired)
        try:
            # A refusal ends the process, which pyarrow's own threads would abort at its exit.
            return _standing(
                bucket, planned, pq.ParquetFile(file, pre_buffer=False), matched, repaired=repaired
            )
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(bucket, error) from error


class _Planned:
    """The ids and the keys of a plan, and its prompts if its ids are row numbers, or may be repaired ones."""

    def __init__(self, plan: Path, *, repaired: bool) -> None:
        names = identity_columns(pq.read_schema(plan))
        self._ids, self.keys, self.prompts = DigestIndex(), DigestIndex(), DigestIndex()
        self.usable = 0
        self.numbered = True
        numbers = [np.empty(0, np.int32)]
        for batch in read_batches(plan, [*names, "row", "key", "prompt"]):
            self.numbered = (
                self.numbered and pc.all(pc.equal(batch["row"].cast(pa.string()), batch["id"])).as_py()
            )
            is_usable = batch["key"].is_valid()
            usable = batch.filter(is_usable)
            numbers.append(self._ids.number(identities(batch))[is_usable.to_numpy(zero_copy_only=False)])
            self.keys.number(text_digests(usable["key"]))
            if self.numbered or repaired:
                self.prompts.number(text_digests(usable["prompt"]))
            self.usable += usable.num_rows
        self._is_usable = np.zeros(
            len(self._ids) + 1, bool
        )  # the last one stands for an id that is not there
        for several in numbers:
            self._is_usable[several] = True

    def known(self, digests: bytes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which of these ids the plan has, and which of them in a row that can become an image."""
        places = self._ids.places(digests)
        return places >= 0, self._is_usable[places]


def _standing(
    bucket: ImageBucket,
    planned: _Planned,
    manifest: pq.ParquetFile,
    matched: Mapping[str, str],
    *,
    repaired: bool,
) -> Standing | None:
    rows = shared = retired = rejected = changed = 0
    images, unused = DigestIndex(), DigestIndex()
    replaced, repeated = set[tuple[Any, ...]](), set[tuple[Any, ...]]()
    schema = manifest.schema_arrow
    columns = [*identity_columns(schema), "key", "status", "uri", "prompt"]
    for batch in manifest.iter_batches(columns=columns, use_threads=False):
        active = pc.fill_null(pc.not_equal(batch["status"], RETIRED), fill_value=False)
        some = batch.filter(pc.and_(active, batch["key"].is_valid()))
        digests = identities(some)
        rows += some.num_rows
        known, usable = planned.known(digests)
        retired += int((~known).sum())
        rejected += int((known & ~usable).sum())
        without_image = batch.filter(pc.and_(active, batch["key"].is_null()))
        if planned.numbered:
            usable = planned.prompts.places(text_digests(some["prompt"])) >= 0
        mended = np.zeros(without_image.num_rows, bool)
        if not planned.numbered:
            mended |= planned.known(identities(without_image))[1]
        if repaired:
            mended |= planned.prompts.places(text_digests(without_image["prompt"])) >= 0
        shared += int(mended.sum())
        shared += int(usable.sum())
        keys = text_digests(some["key"])
        gone = planned.keys.places(keys) < 0
        changed += int((usable & gone).sum())
        made, words = some["uri"].is_valid().to_numpy(zero_copy_only=False), np.frombuffer(keys, "V16")
        if repaired and not planned.numbered:
            replaced.update(_named(some.filter(pa.array(usable & gone))))
            repeated.update(_named(without_image))
        images.number(words[made].tobytes())
        unused.number(words[made & gone].tobytes())
    if not rows:
        return None
    return Standing(
        uri=bucket.uri,
        known_as=(schema.metadata or {}).get(CATALOG_METADATA, b"").decode("utf-8", "replace"),
        usable=planned.usable,
        rows=rows,
        shared=shared,
        retired=retired,
        rejected=rejected,
        images=len(images),
        unused=len(unused),
        by="prompts" if planned.numbered else "ids",
        changed=changed,
        newly_used={
            own: name
            for own, name in matched.items()
            if name in schema.names and name not in OWN_COLUMNS and used_columns(schema).get(own) != name
        },
        taken=sorted({row[0] for row in replaced & repeated}),
    )


def _named(rows: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """The ids, and variants, of a manifest's rows."""
    return zip(*[rows[name].to_pylist() for name in identity_columns(rows.schema)], strict=True)


def refuse_other_catalog(found: Standing, path: str) -> None:
    """Check that the manifest is not another catalog's.

    Raises:
        InputError: it is, or rows of a rejected.parquet would replace other rows of its catalog.
    """
    if found.taken:
        raise InputError(
            f"{len(found.taken):,} of the ids in the catalog {path!r}, such as {found.taken[0]!r}, are still"
            " those of other rows, whose images would be replaced in the manifest. Give these rows ids"
            " of their own, or leave them out."
        )
    if found.usable and found.is_of_other_catalog(path):
        raise InputError(
            f"The manifest in {found.uri} is that of the catalog {found.known_as!r}, not of {path!r}:"
            f" {found.shared:,} of its {found.rows:,} {found.by} are in this catalog. Choose another"
            " output, replace that manifest with --replace-manifest, or add to it with --merge-manifest."
        )


def refuse_empty_catalog(found: Standing, path: str) -> NoReturn:
    """Say why a catalog without rows is not run where there is a manifest.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"The catalog {path!r} has no rows, but the manifest in {found.uri}, that of the catalog"
        f" {found.known_as!r}, has {found.rows:,}. Check the catalog, choose another output, or replace that"
        " manifest with --replace-manifest."
    )


class NewerRun(NamedTuple):
    """A run that has published the manifest though another one, which was planned before it, goes on.

    ``wants_all`` says that the manifest has all rows of the older run's plan, with the same pictures.
    """

    run_id: str
    wants_all: bool


def newer_run(bucket: ImageBucket, run: Publisher, plan: Path, *, is_part: bool) -> NewerRun | None:
    """The run, planned after this one, that has published the manifest since: it knows a newer catalog.

    A run of a part of a catalog still merges its rows, if none asks for another picture than the manifest's.

    Raises:
        InputError: the manifest cannot be read.
    """
    newer = publisher_of(bucket)
    if newer is None or newer.run_id == run.run_id or newer.planned_at <= run.planned_at:
        return None
    found = standing(bucket, plan, {})
    changed = found is not None and found.changed
    if is_part and not changed:
        return None
    return NewerRun(newer.run_id, found is not None and not changed and found.shared >= found.usable)


def publisher_of(bucket: ImageBucket) -> Publisher | None:
    """The run that published the manifest last; None if there is none, or none of this version.

    Raises:
        InputError: the manifest cannot be read.
    """
    with bucket.open(MANIFEST) as file:
        if file is None:
            return None
        try:
            return published_by(pq.ParquetFile(file, pre_buffer=False).schema_arrow)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(bucket, error) from error


def refuse_older_run(uri: str, run_id: str, newer: str) -> NoReturn:
    """Say why a run cannot go on once ``newer`` has published the manifest in ``uri``.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"Run {newer!r}, which was planned after {run_id!r}, has published the manifest in {uri} since:"
        f" {run_id!r} would put an older catalog back. Nothing was generated or changed. Go on with"
        f" {newer!r}, or run the catalog under another run id: images that exist cost nothing."
    )


def pictures_in_use(bucket: ImageBucket, among: Collection[str]) -> set[str]:
    """Those of these pictures, by key and take, that rows of the manifest have; retired rows do not count."""
    found: set[str] = set()
    with bucket.open(MANIFEST) as file:
        manifest = None if file is None else pq.ParquetFile(file, pre_buffer=False)
        batches = manifest.iter_batches(columns=["uri", "status"], use_threads=False) if manifest else ()
        for batch in batches:
            active = batch.filter(pc.not_equal(batch["status"], RETIRED))
            found.update(
                name for uri in active["uri"].to_pylist() if uri and (name := picture_of(uri)) in among
            )
    return found


def _unreadable(bucket: ImageBucket, error: Exception) -> InputError:
    return InputError(f"{bucket.uri_of(MANIFEST)} cannot be read ({error}): move it away.")


def rebought_columns(found: Standing, share: float) -> str | None:
    """What columns change that were only carried before, as a sentence, if it is more than this share.

    Version 0.1 did not use columns whose names have other capitals than its own.
    """
    if not found.newly_used or found.changed <= share * found.shared:
        return None
    names, several = " and ".join(map(repr, found.newly_used.values())), len(found.newly_used) > 1
    use = " ".join(f"--column {own}={name}" for own, name in found.newly_used.items())
    leave = " ".join(f"--column {own}=" for own in found.newly_used)
    return (
        f"The column{'s' if several else ''} {names} would now be used as {' and '.join(found.newly_used)},"
        f" which {'they were' if several else 'it was'} not when the manifest in {found.uri} was made:"
        f" {found.changed:,} of {found.shared:,} images would be made anew. Say which is meant: {use} to use"
        f" {'them' if several else 'it'}, {leave} to leave {'them' if several else 'it'} alone."
    )


def loss_of_refresh(found: Standing, path: str, refresh: RefreshSettings, *, prune: bool) -> str | None:
    """What a refresh would take away, as a sentence, if that is too much; else None."""
    gone, share = found.retired + found.rejected, refresh.max_retired_share
    if not found.usable:
        return (
            f"The catalog {path!r} has no row that can become an image: a refresh from it would retire"
            f" all {found.rows:,} rows of the manifest in {found.uri}."
        )
    if _is_too_much(gone, found.rows, share):
        return (
            f"A refresh from the catalog {path!r} would take {gone:,} of {found.rows:,} rows from the"
            f" manifest in {found.uri}: {found.retired:,} have left the catalog, {found.rejected:,} can no"
            f" longer be used. That is {gone / found.rows:.0%}, and at most {share:.0%} may go unasked."
        )
    if found.is_of_other_catalog(path):
        return (
            f"The catalog {path!r} and the manifest in {found.uri} hardly share a row: {found.shared:,} of"
            f" its {found.rows:,} {found.by} are in this catalog, which has {found.usable:,} rows."
        )
    if prune and _is_too_much(found.unused, found.images, share):
        return (
            f"A refresh from the catalog {path!r} would delete {found.unused:,} of {found.images:,} images"
            f" in {found.uri}, which no row would use any more. That is"
            f" {found.unused / found.images:.0%}, and at most {share:.0%} may go unasked."
        )
    return None


def _is_too_much(gone: int, everything: int, share: float) -> bool:
    """Whether too much would go. A single row may always go, unless it is the only one."""
    return gone > 0 and (gone == everything or (gone > 1 and gone > share * everything))
