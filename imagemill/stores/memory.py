"""The job store for runs of up to 1,000 jobs: in memory, with a checkpoint file.

The checkpoint is the whole store as one JSON document. It is written to a new file, fsynced and renamed over
the old one, so that the file is always complete. It is written every few seconds, and immediately when the
engine waits for a commit: a request id must be on disk before the first poll. The run's log is fsynced first:
after a power cut, too, it tells of every request that the checkpoint has counted.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

import anyio.to_thread
from pydantic import TypeAdapter

from imagemill.durable import make_durable, write_whole
from imagemill.errors import InputError
from imagemill.jobs import JOB_FIELDS, STATE_FIELDS, TERMINAL, Job
from imagemill.stores.base import JobState, JobStore, JobTotals
from imagemill.stores.encoding import from_json, to_json
from imagemill.stores.lease_file import LeaseFile
from imagemill.stores.version import StoreVersion

CHECKPOINT_INTERVAL_S = 2.0
"""The maximum age of the checkpoint while jobs finish, in seconds."""

_values_of = attrgetter(*JOB_FIELDS)
_JOB = TypeAdapter(Job)


class MemoryStore(JobStore):
    """Jobs in memory, checkpointed to ``path`` after what is in ``log``."""

    name = "memory"

    def __init__(self, path: Path, log: Path | None = None) -> None:
        super().__init__()
        self._path = path
        self._log = log
        self._lease_file = LeaseFile(path.with_suffix(".lease"))
        self._jobs: dict[int, Job] = {}
        self._planned = False
        self._written_at = 0.0
        self._unwritten = False

    async def is_planned(self) -> bool:
        return self._planned

    async def clear(self) -> None:
        self._jobs, self._planned = {}, False
        await self.patiently(anyio.to_thread.run_sync, partial(self._path.unlink, missing_ok=True))

    async def add(self, jobs: Sequence[Job]) -> None:
        self._jobs.update((job.number, _copy(job)) for job in jobs)

    async def mark_planned(self) -> None:
        self._planned = True
        await self.patiently(self._checkpoint)

    async def unfinished_numbers(self) -> Sequence[int]:
        return array("q", (number for number, job in self._jobs.items() if job.status not in TERMINAL))

    async def unfinished(self, first: int, last: int) -> list[Job]:
        found = (self._jobs.get(number) for number in range(first, last + 1))
        return [_copy(job) for job in found if job is not None and job.status not in TERMINAL]

    async def all_jobs(self, batch_size: int = 2_000) -> AsyncIterator[list[Job]]:
        jobs = list(self._jobs.values())
        for start in range(0, len(jobs), batch_size):
            yield [_copy(job) for job in jobs[start : start + batch_size]]

    async def _totals(self) -> JobTotals:
        return JobTotals.of(self._jobs.values())

    async def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Cannot create the folder of the run's checkpoint, {self._path.parent} ({error.strerror})."
            ) from error

    async def _load(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            document = from_json(raw)
            StoreVersion(document["version"], document.get("made_by")).check(f"The checkpoint {self._path}")
            jobs = [_JOB.validate_python(job) for job in document["jobs"]]
            array("q", (job.number for job in jobs))  # a number that no store holds is damage too
            JobTotals.of(jobs)  # and an amount that cannot be added
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            aside = self._path.with_suffix(f".damaged-{time.time():.0f}")
            self._path.rename(aside)
            raise InputError(
                f"The checkpoint {self._path} is damaged and was set aside as {aside.name}. Run the same"
                " command again: images in the bucket are found there and are not paid for again."
            ) from error
        self._jobs = {job.number: job for job in jobs}
        self._planned = True

    async def _close(self) -> None:
        if self._planned and self._unwritten:
            with contextlib.suppress(OSError):  # the caller of commit() has seen the error
                await self._checkpoint()

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        for number, *state in batch:
            job = self._jobs[number]
            for name, value in zip(STATE_FIELDS, state, strict=True):
                setattr(job, name, value)
        self._unwritten = self._unwritten or bool(batch)
        if self._unwritten and (durable or self._is_due()):
            await self._checkpoint()

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_at >= CHECKPOINT_INTERVAL_S

    async def _checkpoint(self) -> None:
        here = StoreVersion.here()
        document = {
            "version": here.number,
            "made_by": here.made_by,
            "jobs": [dict(zip(JOB_FIELDS, _values_of(job), strict=True)) for job in self._jobs.values()],
        }
        await anyio.to_thread.run_sync(self._write_after_log, to_json(document))
        self._written_at = time.monotonic()
        self._unwritten = False

    def _write_after_log(self, document: bytes) -> None:
        if self._log is not None and self._log.exists():
            make_durable(self._log)
        write_whole(self._path, document)

    async def _lease(self, holder: str, instead_of: str | None) -> str:
        return await anyio.to_thread.run_sync(self._lease_file.take, holder, instead_of, self.lease_s)

    async def _renew_lease(self, holder: str) -> bool:
        return await anyio.to_thread.run_sync(self._lease_file.renew, holder, self.lease_s)

    async def _free_lease(self, holder: str) -> None:
        await anyio.to_thread.run_sync(self._lease_file.free, holder)


def _copy(job: Job) -> Job:
    return Job(*_values_of(job))
