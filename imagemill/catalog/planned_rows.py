"""Looks up a job's catalog row in the plan of a run, without reading the whole plan."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_CARRIED = "carried:"
_GROUPS_HELD = 4


class PlannedRows:
    """The catalog's own columns of jobs, by number; holds the row groups that were read last."""

    def __init__(self, plan: Path) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._held: OrderedDict[int, tuple[pa.Table, dict[int, int]]] = OrderedDict()
        self._source: pq.ParquetFile | None = None
        self._last_jobs: list[int] = []
        self._columns: list[str] = []

    def of(self, job: int) -> dict[str, Any]:
        """The columns that the catalog has beside imagemill's own, of the first row with this job.

        Raises:
            OSError: there is no plan on this machine.
        """
        with self._lock:
            self._open()
            if not self._columns or not self._last_jobs or job > self._last_jobs[-1]:
                return {}
            rows, places = self._group(bisect_left(self._last_jobs, job))
            place = places.get(job)
            found = rows.slice(place, 1).to_pylist()[0] if place is not None else {}
        return {name.removeprefix(_CARRIED): value for name, value in found.items() if name != "job"}

    def _open(self) -> None:
        if self._source is not None:
            return
        self._source = pq.ParquetFile(self._plan, pre_buffer=False)
        names = self._source.schema_arrow.names
        self._columns = [name for name in names if name.startswith(_CARRIED)]
        job, described = names.index("job"), self._source.metadata
        groups = [described.row_group(n).column(job).statistics for n in range(described.num_row_groups)]
        highest = [known.max if known is not None and known.has_min_max else -1 for known in groups]
        self._last_jobs = list(accumulate(highest, max))  # jobs are numbered as the catalog first has them

    def _group(self, number: int) -> tuple[pa.Table, dict[int, int]]:
        """A row group, and where the first row of each job is in it."""
        if number not in self._held and self._source is not None:
            rows = self._source.read_row_group(number, ["job", *self._columns], use_threads=False)
            jobs = rows["job"].to_pylist()
            self._held[number] = rows, {job: place for place, job in reversed(list(enumerate(jobs)))}
            if len(self._held) > _GROUPS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]
