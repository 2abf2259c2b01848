"""Rows of a manifest that a newer run finished, which an older run that merges its own leaves as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.bucket.manifest import published_by
from imagemill.bucket.manifest_diff import identities
from imagemill.catalog.digest_index import DigestIndex
from imagemill.jobs import JobStatus
from imagemill.parquet import read_batches
from imagemill.takes import REJECTED, take_of

_OUTCOME = ("seed", "status", "uri", "copy_uri", "error_code")


class FinishedRows:
    """What the previous manifest says of the rows that it has done, if a newer run published it.

    Args:
        before: the previous manifest.
        manifest: that of the run which merges its rows.
    """

    def __init__(self, before: Path, manifest: Path) -> None:
        self.schema: pa.Schema = pq.read_schema(before)
        theirs, ours = published_by(self.schema), published_by(pq.read_schema(manifest))
        self.is_newer = (
            theirs is not None
            and ours is not None
            and theirs.run_id != ours.run_id
            and theirs.planned_at > ours.planned_at
        )
        self._rows = DigestIndex()
        self._outcomes: dict[int, dict[str, Any]] = {}
        if self.is_newer:
            self._read(before, manifest)

    def _read(self, before: Path, manifest: Path) -> None:
        for batch in read_batches(manifest):
            self._rows.number(identities(batch))
        for batch in read_batches(before):
            numbers = self._rows.find(identities(batch))
            outcomes = batch.select(["key", *_OUTCOME]).to_pylist()
            for number, outcome in zip(numbers, outcomes, strict=True):
                if number >= 0 and outcome["status"] == JobStatus.DONE:
                    self._outcomes[number] = outcome

    def kept(self, rows: pa.Table) -> pa.Table:
        """Rows of the older run's manifest, with the outcome of each that the newer run finished.

        What a review rejected stays rejected, and a picture that was made anew takes the older one's place.
        """
        if not self._outcomes:
            return rows
        numbers = self._rows.find(b"".join(identities(batch) for batch in rows.to_batches()))
        columns = {name: rows[name].to_pylist() for name in _OUTCOME}
        for place, (number, key) in enumerate(zip(numbers, rows["key"].to_pylist(), strict=True)):
            finished = self._outcomes.get(number)
            if finished is None or finished["key"] != key or columns["error_code"][place] == REJECTED:
                continue
            if take_of(columns["uri"][place] or "") <= take_of(finished["uri"]):
                for name in _OUTCOME:
                    columns[name][place] = finished[name]
        for name, values in columns.items():
            field = rows.schema.field(name)
            rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
        return rows
