"""Pictures that refreshes removed from the manifest but did not delete, for a later prune.

``superseded.parquet`` lists objects that were once in this output's manifest. Listing images/ instead would
also find pictures of unfinished runs and of other catalogs. The file may list too many objects, never too
few: it is written before the manifest that drops a picture, and objects in the current manifest are never
deleted.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.media_types import PARQUET

SUPERSEDED = "superseded.parquet"
_SCHEMA = pa.schema([("name", pa.string())])


class Superseded:
    """The superseded objects of an output, by their names below the output prefix."""

    def __init__(self, bucket: ImageBucket, folder: Path) -> None:
        found = bucket.read_version(SUPERSEDED)
        self._bucket, self._file = bucket, folder / SUPERSEDED
        self._etag = found and found[1]
        self.names: frozenset[str] = frozenset()
        if found is not None:
            self.names = frozenset(pq.read_table(pa.BufferReader(found[0]))["name"].to_pylist())

    def remember(self, names: frozenset[str]) -> None:
        """Replace the stored names.

        Raises:
            ConflictError: another process replaced them in the meantime.
        """
        if names == self.names:
            return
        pq.write_table(pa.table({"name": sorted(names)}, _SCHEMA), self._file, compression="zstd")
        self._etag = self._bucket.replace(self._file, SUPERSEDED, PARQUET, self._etag)
        self.names = names
