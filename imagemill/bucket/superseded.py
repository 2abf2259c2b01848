"""The pictures that refreshes have taken out of the manifest and not deleted, for a later prune to find.

``superseded.parquet`` names objects that this output's own manifest once had. Listing images/ would find
pictures of others too: of a run that is still under way, or of another catalog. The file may name too much,
never too little: it is written before the manifest that drops a picture, and what the manifest of the day
uses is never deleted.
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
    """The objects remembered in a bucket, by their names below the output prefix."""

    def __init__(self, bucket: ImageBucket, folder: Path) -> None:
        found = bucket.read_version(SUPERSEDED)
        self._bucket, self._file = bucket, folder / SUPERSEDED
        self._etag = found and found[1]
        self.names: frozenset[str] = frozenset()
        if found is not None:
            self.names = frozenset(pq.read_table(pa.BufferReader(found[0]))["name"].to_pylist())

    def remember(self, names: frozenset[str]) -> None:
        """Let the bucket remember these names and no others.

        Raises:
            ConflictError: somebody else wrote them in the meantime.
        """
        if names == self.names:
            return
        pq.write_table(pa.table({"name": sorted(names)}, _SCHEMA), self._file, compression="zstd")
        self._etag = self._bucket.replace(self._file, SUPERSEDED, PARQUET, self._etag)
        self.names = names
