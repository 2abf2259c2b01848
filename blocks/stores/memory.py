"""The job store for runs of up to 1,000 jobs: in memory, with a checkpoint file.

The checkpoint is the whole store as one JSON document, written beside the old one, fsynced and renamed
over it: at any moment the file is one complete state. It is written every few seconds, and at once when
the engine waits for a commit (a request id must be on disk before the first poll).
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from pathlib import Path

import anyio.to_thread
import orjson

from blocks.errors import InputError
from blocks.jobs import STATE_FIELDS, TERMINAL, Job, JobStatus
from blocks.stores.base import JobState, JobStore, JobTotals

CHECKPOINT_VERSION = 1
CHECKPOINT_INTERVAL_S = 2.0
"""How old a checkpoint may be while jobs finish, in seconds."""


class MemoryStore(JobStore):
    """Jobs in memory, checkpointed to ``path``."""

    name = "memory"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._jobs: dict[int, Job] = {}
        self._planned = False
        self._written_at = 0.0

    async def is_planned(self) -> bool:
        return self._planned

    async def clear(self) -> None:
        self._jobs, self._planned = {}, False

    async def add(self, jobs: Sequence[Job]) -> None:
        self._jobs.update((job.number, _copy(job)) for job in jobs)

    async def mark_planned(self) -> None:
        self._planned = True
        await self._checkpoint()

    async def unfinished_numbers(self) -> Sequence[int]:
        return [number for number, job in self._jobs.items() if job.status not in TERMINAL]

    async def unfinished(self, first: int, last: int) -> list[Job]:
        found = (self._jobs.get(number) for number in range(first, last + 1))
        return [_copy(job) for job in found if job is not None and job.status not in TERMINAL]

    async def all_jobs(self, batch_size: int = 10_000) -> AsyncIterator[list[Job]]:
        jobs = list(self._jobs.values())
        for start in range(0, len(jobs), batch_size):
            yield [_copy(job) for job in jobs[start : start + batch_size]]

    async def totals(self) -> JobTotals:
        jobs = self._jobs.values()
        done = [job for job in jobs if job.status is JobStatus.DONE]
        failed = sum(job.status is JobStatus.FAILED for job in jobs)
        return JobTotals(
            done=len(done),
            failed=failed,
            pending=len(jobs) - len(done) - failed,
            reused=sum(job.reused for job in done),
            attempts=sum(job.attempts for job in jobs),
            retries=sum(job.retries for job in jobs),
            cost_usd=sum(job.cost_usd for job in jobs),
        )

    async def _open(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            document = orjson.loads(raw)
            version = document["version"]
            jobs = [Job(**{**job, "status": JobStatus(job["status"])}) for job in document["jobs"]]
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            aside = self._path.with_suffix(f".damaged-{time.time():.0f}")
            self._path.rename(aside)
            raise InputError(
                f"The checkpoint {self._path} is damaged and was set aside as {aside.name}. Start the"
                " same command again: images that are in the bucket are found there, not paid again."
            ) from error
        if version != CHECKPOINT_VERSION:
            raise InputError(
                f"The checkpoint {self._path} has version {version}; this imagemill reads version"
                f" {CHECKPOINT_VERSION}. Finish the run with the imagemill that began it."
            )
        self._jobs = {job.number: job for job in jobs}
        self._planned = True

    async def _close(self) -> None:
        if self._planned:
            await self._checkpoint()

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        for number, *state in batch:
            job = self._jobs[number]
            for name, value in zip(STATE_FIELDS, state, strict=True):
                setattr(job, name, value)
        if durable or time.monotonic() - self._written_at >= CHECKPOINT_INTERVAL_S:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        document = {
            "version": CHECKPOINT_VERSION,
            "jobs": [asdict(job) for job in self._jobs.values()],
        }
        await anyio.to_thread.run_sync(_write_atomically, self._path, orjson.dumps(document))
        self._written_at = time.monotonic()


def _copy(job: Job) -> Job:
    return Job(**asdict(job))


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
