"""Pictures that left the manifest but were not deleted, for a later prune.

``superseded.parquet`` lists objects that were once in this output's manifest, and since when they are in it
no more. Listing images/ instead would also find pictures of unfinished runs and of other catalogs. The file
may list too many objects, never too few: it is written before the manifest that drops a picture, and objects
in the current manifest are never deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ConflictError, ImageBucket
from imagemill.errors import StoreUnavailableError
from imagemill.media_types import PARQUET

SUPERSEDED = "superseded.parquet"
KEPT = timedelta(days=30)
"""How long a run that has stopped can be resumed with the pictures that it has found."""

_SCHEMA = pa.schema([("name", pa.string()), ("superseded_at", pa.timestamp("ms", "UTC"))])


def keep(bucket: ImageBucket, folder: Path, names: set[str]) -> None:
    """Put off when pictures that a run has found count as superseded: it may stop before its manifest.

    ``folder`` is where the list is written before it is uploaded.
    """
    later = datetime.now(UTC).replace(microsecond=0) + KEPT
    for _ in range(5):
        superseded = Superseded(bucket, folder)
        found = superseded.since.keys() & names
        with suppress(ConflictError):
            if found:
                superseded.remember({**superseded.since, **dict.fromkeys(found, later)})
            return
    raise StoreUnavailableError("Other runs keep replacing the list of superseded images of this output.")


class Superseded:
    """The superseded objects of an output: names below the output prefix, and when each was superseded."""

    def __init__(self, bucket: ImageBucket, folder: Path) -> None:
        found = bucket.read_version(SUPERSEDED)
        self._bucket, self._file = bucket, folder / SUPERSEDED
        self._etag = found and found[1]
        self.since: Mapping[str, datetime] = {}
        self._stored: Mapping[str, datetime] = self.since
        if found is not None:
            table = pq.read_table(pa.BufferReader(found[0]))
            names = table["name"].to_pylist()
            if "superseded_at" in table.column_names:
                self.since = dict(zip(names, table["superseded_at"].to_pylist(), strict=True))
                self._stored = self.since
            else:  # written by an earlier version: their grace period begins now
                self.since = dict.fromkeys(names, datetime.now(UTC))

    def remember(self, since: Mapping[str, datetime]) -> None:
        """Replace the stored names.

        Raises:
            ConflictError: another process replaced them in the meantime.
        """
        if since == self._stored:
            return
        names = sorted(since)
        table = pa.table([names, [since[name] for name in names]], _SCHEMA)
        pq.write_table(table, self._file, compression="zstd")
        self._etag = self._bucket.replace(self._file, SUPERSEDED, PARQUET, self._etag)
        self.since = self._stored = since
