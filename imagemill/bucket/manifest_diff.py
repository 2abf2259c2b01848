"""Compares a manifest with the previous one: rows added, changed, unchanged and gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.manifest import CATALOG_METADATA
from imagemill.catalog.digest_index import DIGEST_BYTES, DigestIndex, text_digests
from imagemill.parquet import read_batches

RETIRED = "retired"
VARIANT = "variant"


@dataclass(frozen=True, slots=True)
class Changes:
    """The differences from the previous manifest, in rows.

    ``pruned`` counts images that were deleted, ``prunable`` those that wait for their grace period to end,
    ``prune_failed`` objects that the bucket did not delete.
    """

    added: int
    changed: int
    unchanged: int
    retired: int
    pruned: int = 0
    prunable: int = 0
    prune_failed: int = 0


class Comparison:
    """A manifest's ids, for comparing it with others. It is read in batches, and takes 40 bytes per row.

    Args:
        manifest: the file, which is read again for each comparison.
    """

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._ids = DigestIndex()
        columns = identity_columns(pq.read_schema(manifest))
        numbers = [self._ids.number(identities(batch)) for batch in read_batches(manifest, columns)]
        self._rows = np.concatenate([np.empty(0, np.int32), *numbers])
        """The number of each row's id."""

    def changes(self, before: Path, lost: Callable[[pa.RecordBatch], None] | None = None) -> Changes:
        """Compare with the previous manifest; ``lost`` is called with its rows whose ids are gone, or null.

        Of several rows with the same id, the last one counts. Retired rows do not count, nor rejected ones
        without an id: whether one of the new rows is such a row, repaired, cannot be known.
        """
        known = np.zeros(len(self._ids), bool)
        keys = np.zeros(len(self._ids), np.int64)
        gone = DigestIndex()
        columns = [*identity_columns(pq.read_schema(before)), "key", "status"]
        for batch in read_batches(before, None if lost else columns):
            digests = identities(batch)
            numbers = self._ids.places(digests)
            has_id = batch["id"].is_valid()
            numbers[~has_id.to_numpy(zero_copy_only=False)] = -1
            active = pc.fill_null(pc.not_equal(batch["status"], RETIRED), fill_value=False)
            active = pc.and_(active, has_id).to_numpy(zero_copy_only=False)
            here = active & (numbers >= 0)
            known[numbers[here]] = True
            keys[numbers[here]] = _halves(batch)[here]
            missing = np.frombuffer(digests, f"V{DIGEST_BYTES}")[active & (numbers < 0)]
            gone.number(missing.tobytes())
            if lost is not None:
                lost(batch.filter(pa.array(numbers < 0)))
        added = unchanged = planned = start = 0
        for batch in read_batches(self._manifest, ["key"]):
            numbers = self._rows[start : start + batch.num_rows]
            start += batch.num_rows
            valid = batch["key"].is_valid().to_numpy(zero_copy_only=False)  # the others were rejected
            planned += int(valid.sum())
            added += int((valid & ~known[numbers]).sum())
            unchanged += int((valid & known[numbers] & (keys[numbers] == _halves(batch))).sum())
        return Changes(added, planned - added - unchanged, unchanged, len(gone))


def identity_columns(schema: pa.Schema) -> list[str]:
    """The columns of a manifest or a plan that tell its rows apart."""
    return ["id", VARIANT] if VARIANT in schema.names and not has_foreign_variant(schema) else ["id"]


def has_foreign_variant(schema: pa.Schema) -> bool:
    """Whether a manifest is one of version 0.1 with a column ``variant`` of the catalog's own."""
    is_plan = "job" in schema.names
    return VARIANT in schema.names and not is_plan and CATALOG_METADATA not in (schema.metadata or {})


def identities(batch: pa.RecordBatch) -> bytes:
    """A digest of each row's id and variant, which follow each other; the first variant's is the id's."""
    ids = batch["id"]
    if VARIANT in batch.schema.names and (pc.max(batch[VARIANT]).as_py() or 1) > 1:
        variants = batch[VARIANT].fill_null(1)
        several = pc.binary_join_element_wise(ids, variants.cast(pa.string()), "\0")
        ids = pc.if_else(pc.greater(variants, 1), several, ids)
    return text_digests(ids)


def _halves(batch: pa.RecordBatch) -> np.ndarray:
    """Half of the digest of each key, which is enough to compare the keys of one id."""
    return np.frombuffer(text_digests(batch["key"]), np.int64)[::2]
