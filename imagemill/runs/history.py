"""The history of runs, from the bucket's folder ``metrics/``, with one row per run."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from imagemill.bucket.image_bucket import ImageBucket, StoredImage
from imagemill.formatting import utc
from imagemill.settings import RUN_ID

_ROW_FILE = re.compile(rf"metrics/run_id=({RUN_ID.pattern})/run\.parquet")
_MOST_BYTES = 2**20
"""A run's row has about 10 KB; larger files are something else."""
_AT_ONCE = 16

Count = Field(ge=0)
Amount = Field(ge=0, allow_inf_nan=False)


class RunRow(BaseModel):
    """A run's row in ``metrics/``. Latency is in seconds, costs are in USD."""

    model_config = ConfigDict(frozen=True, extra="allow")

    run_id: str
    started_at: datetime | None = None
    ended_at: datetime
    catalog: str = Field(max_length=4_000)
    provider: str = Field(max_length=200)
    model: str | None = Field(default=None, max_length=300)
    unique: int = Count
    done: int = Count
    failed: int = Count
    generated: int = Count
    images_per_minute: float = Amount
    error_rate: float = Field(ge=0, le=1)
    p95_latency_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    p95_queued_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cost_usd: float = Amount
    saved_usd: float = Amount
    measured: int = Field(default=0, ge=0)
    suspect: int = Field(default=0, ge=0)
    stopped: str | None = None
    routes: str | None = None
    """Of a run over several routes, the metrics of each, as JSON."""

    @property
    def at(self) -> datetime:
        """When the run was, in UTC: its start, or its end if nothing was sent to the API."""
        return utc(self.started_at or self.ended_at)

    @property
    def suspect_rate(self) -> float | None:
        """Suspect pictures divided by measured ones; None if none was measured."""
        return min(1.0, self.suspect / self.measured) if self.measured else None

    @property
    def cost_per_image_usd(self) -> float | None:
        """The cost of one generated image."""
        return self.cost_usd / self.generated if self.generated else None


@dataclass(frozen=True, slots=True)
class History:
    """All runs of a bucket by time, and how many files in ``metrics/`` were not runs."""

    runs: list[RunRow]
    skipped: int


def history_of(bucket: ImageBucket, *, every_column: bool = False) -> History:
    """The runs in the bucket's ``metrics/``; other files are skipped.

    With ``every_column``, rows also have as extra fields what a :class:`RunRow` does not name.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = list(threads.map(lambda file: _row(bucket, file, every_column), bucket.objects("metrics")))
    runs = [row for row in found if row is not None]
    return History(sorted(runs, key=lambda run: (run.at, run.run_id)), len(found) - len(runs))


def _row(bucket: ImageBucket, file: StoredImage, every_column: bool) -> RunRow | None:  # noqa: FBT001
    name = _ROW_FILE.fullmatch(file.name)
    if name is None or file.size > _MOST_BYTES:
        return None
    content = bucket.read(file.name)
    if content is None:
        return None
    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        if table.metadata.num_rows != 1:
            return None
        names = table.schema_arrow.names
        wanted = names if every_column else [column for column in RunRow.model_fields if column in names]
        row: dict[str, Any] = table.read(columns=wanted).to_pylist()[0]
        return RunRow(**{**row, "run_id": name[1]})
    except (pa.ArrowException, OSError, ValueError, OverflowError):
        return None
