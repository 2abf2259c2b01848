"""The interface of a job store, and what all stores share: group commit, waiting out outages, the lease.

A store holds the jobs of one run. The engine changes a job in memory and passes it to :meth:`save`. A
single writer collects saved jobs and writes them in batches, so that ten thousand finished images need only
a few hundred commits. :meth:`commit` waits until everything saved so far is written.

An open store holds the run's lease and renews it regularly, so that two processes never work on the same run
by mistake. Processes that work on a run together join the one that holds the lease.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from operator import attrgetter
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar

import anyio
import anyio.abc
import pyarrow as pa

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.holder import Holder
from imagemill.jobs import STATE_FIELDS, Job, JobStatus
from imagemill.parquet import column_of
from imagemill.usd import total

T = TypeVar("T")

COMMIT_INTERVAL_S = 0.05
"""How long the writer collects jobs before it writes them, in seconds."""

OUTAGE_S = 60.0
"""How long a store may be unavailable before the run stops, in seconds."""

LEASE_S = 30.0
"""How long a lease lasts, in seconds; it is renewed three times as often."""

_BLOCK = 10_000
"""So many jobs are read at once."""

CONNECT_S = 5.0
"""The time limit for a server's answer when a store is opened, in seconds."""


@dataclass(frozen=True, slots=True)
class JobTotals:
    """Counts of a run's jobs. Costs are in USD; ``reused`` of ``done`` were found in the bucket.

    ``failed`` excludes jobs whose picture a person has ``rejected``.

    ``cost_usd`` counts images and judge; ``judge_usd`` is the judge's part of it.
    ``unanswered`` requests were never answered; the API may have charged ``unanswered_usd`` for them.
    """

    done: int = 0
    failed: int = 0
    rejected: int = 0
    pending: int = 0
    reused: int = 0
    attempts: int = 0
    retries: int = 0
    cost_usd: float = 0.0
    unanswered: int = 0
    unanswered_usd: float = 0.0
    judge_usd: float = 0.0

    @property
    def generated(self) -> int:
        """Jobs whose image this run paid for."""
        return self.done - self.reused

    @classmethod
    def of(cls, jobs: Collection[Job]) -> JobTotals:
        """The counts of these jobs."""
        done = [job for job in jobs if job.status is JobStatus.DONE]
        failed = sum(job.status is JobStatus.FAILED for job in jobs)
        rejected = sum(job.is_rejected for job in jobs)
        return cls(
            done=len(done),
            failed=failed - rejected,
            rejected=rejected,
            pending=len(jobs) - len(done) - failed,
            reused=sum(job.reused for job in done),
            attempts=sum(job.attempts for job in jobs),
            retries=sum(job.retries for job in jobs),
            cost_usd=total(job.total_usd for job in jobs),
            unanswered=sum(job.unanswered for job in jobs),
            unanswered_usd=total(job.unanswered_usd for job in jobs),
            judge_usd=total(job.judge_usd for job in jobs),
        )

    def after(self, before: Collection[Job], now: Collection[Job]) -> JobTotals:
        """The counts once some of the jobs are no more as they were ``before``."""
        sums = zip(*map(astuple, (self, JobTotals.of(now), JobTotals.of(before))), strict=True)
        return JobTotals(*(all_ + new - old for all_, new, old in sums))


JobState: TypeAlias = tuple[Any, ...]
"""A job's number, then its state fields in order, as they stood when it was saved."""


_TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "JobStatus": pa.string(),
}
_TYPE_OF = {field.name: _TYPES[str(field.type).partition(" ")[0]] for field in fields(Job)}


def record_batch(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Fields of jobs as Arrow's columns."""
    arrays = [column_of(values, _TYPE_OF[name]) for name, values in zip(names, columns, strict=True)]
    return pa.record_batch(arrays, list(names))


class JobStore(ABC):
    """The jobs of one run. Use it as an async context manager, from a single event loop.

    With ``join=True`` it works on a run whose lease another process holds, and takes none. ``outage_s``,
    ``lease_s`` and ``patience_s``, how long to wait for another process to give the lease back, can be set
    before the store is opened.

    Reads and writes are repeated while the store is unavailable, for up to ``outage_s`` seconds. After that,
    every method raises StoreUnavailableError.
    """

    name: str
    outages: ClassVar[tuple[type[Exception], ...]] = (OSError,)
    """The exceptions with which the driver reports that the store is unavailable."""

    def __init__(self, *, join: bool = False) -> None:
        self.outage_s = OUTAGE_S
        self.lease_s = LEASE_S
        self.patience_s = 0.0
        self._join = join
        self._holder = Holder.here()
        self._renewed_at = 0.0
        self._dirty: dict[int, JobState] = {}
        self._durable = False
        self._waiters: list[anyio.Event] = []
        self._wake = anyio.Event()
        self._failure: StoreUnavailableError | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(_shielded, self._close)
            await self._open()
            if not self._join:
                await self._take_lease()
                stack.push_async_callback(_shielded, self._give_back_lease)
            await self._load()
            # Not commit(): if the run was cancelled, the writer has already ended.
            stack.push_async_callback(_shielded, self._write_batch)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(self._write_batches)
            if not self._join:
                tasks.start_soon(self._keep_lease)
            stack.callback(tasks.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def save(self, job: Job, *, durable: bool = False) -> None:
        """Queue a job's state for the next batch, which survives a power cut if it is to be ``durable``.

        Raises:
            StoreUnavailableError: the store was unavailable for too long, or another process took the run.
        """
        self._dirty[job.number] = (job.number, *[getattr(job, name) for name in STATE_FIELDS])
        if self._failure is not None:
            raise self._failure
        self._durable |= durable
        self._wake.set()

    async def commit(self) -> None:
        """Wait until everything saved before this call is written.

        Raises:
            StoreUnavailableError: the store was unavailable for too long, or another process took the run.
        """
        if self._failure is None:
            waiter = anyio.Event()
            self._waiters.append(waiter)
            self._wake.set()
            await waiter.wait()
        if self._failure is not None:
            raise self._failure

    async def hold(self) -> None:
        """Make sure that no other process took the run while this one stood still.

        Raises:
            StoreUnavailableError: one did, or the store was unavailable for too long.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_late:
            await self.patiently(self._renew)

    @property
    def _is_late(self) -> bool:
        """Whether the lease has expired unless it was renewed: another process may have taken the run."""
        return not self._join and anyio.current_time() - self._renewed_at > self.lease_s

    async def _write_batches(self) -> None:
        while True:
            await self._wake.wait()
            if self._failure is None:
                await anyio.sleep(COMMIT_INTERVAL_S)
            await _shielded(self._write_batch)

    async def _write_batch(self) -> None:
        self._wake = anyio.Event()
        batch, self._dirty = self._dirty, {}
        waiters, self._waiters = self._waiters, []
        durable, self._durable = self._durable or bool(waiters), False
        if batch or waiters:
            try:
                await self.patiently(self._write_leased, list(batch.values()), durable)
            except StoreUnavailableError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the engine must stop
                self._fail(StoreUnavailableError(f"{self._title} cannot write: {reason_of(error)}."))
        if self._failure is not None:
            self._dirty = batch | self._dirty
        for waiter in waiters:
            waiter.set()

    async def _write_leased(self, batch: Sequence[JobState], durable: bool) -> None:  # noqa: FBT001
        if self._failure is not None:
            raise self._failure
        if self._is_late:
            await self._renew()
        await self._write(batch, durable=durable)

    def _fail(self, failure: StoreUnavailableError) -> None:
        if self._failure is None:
            self._failure = failure
            self._wake.set()  # release those who wait for a batch that will not be written

    @property
    def _title(self) -> str:
        return f"The job store ({self.name})"

    async def patiently(self, action: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Run an idempotent action, and repeat it while the store is unavailable.

        The patience begins with the first failure: an attempt that waited on a dead connection does not show
        whether the store is available now.

        Raises:
            StoreUnavailableError: the store was unavailable for ``outage_s`` seconds.
        """
        started = anyio.current_time()
        failing_since: float | None = None
        wait = 0.1
        while True:
            try:
                return await action(*arguments)
            except self.outages as error:
                now = anyio.current_time()
                failing_since = now if failing_since is None else failing_since
                left_s = failing_since + self.outage_s - now
                if self._failure is not None or left_s <= 0:
                    raise StoreUnavailableError(
                        f"{self._title} has not answered for {now - started:.0f} s ({reason_of(error)})."
                    ) from error
            await anyio.sleep(min(wait, left_s))
            wait = min(wait * 2, 5.0)

    async def _take_lease(self) -> None:
        until = anyio.current_time() + self.patience_s
        while (other := await self._try_lease()) is not None:
            if anyio.current_time() >= until:
                raise InputError(
                    f"The run is in use by {other}. Wait until it has finished, or stop it. If that machine"
                    f" is down, the run can be resumed in {self.lease_s:.0f} s."
                )
            await anyio.sleep(self.lease_s / 30)
        self._renewed_at = anyio.current_time()

    async def _try_lease(self) -> Holder | None:
        """Take the lease; if another process holds it, that one."""
        mine = self._holder.to_text()
        held = await self.patiently(self._lease, mine, None)
        other = Holder.of_text(held)
        if held != mine and (other is None or other.is_gone()):
            held = await self.patiently(self._lease, mine, held)
            other = Holder.of_text(held)
        return None if held == mine else other

    async def _keep_lease(self) -> None:
        while self._failure is None:
            await anyio.sleep(self.lease_s / 3)
            try:
                await self._renew()
            except StoreUnavailableError as error:
                self._fail(error)
            except self.outages:
                continue  # the writer repeats its writes, and reports when it gives up

    async def _renew(self) -> None:
        begun = anyio.current_time()
        if not await self._renew_lease(self._holder.to_text()):
            raise StoreUnavailableError(
                f"{self._title} says that another process took the run, so this one has stopped."
            )
        self._renewed_at = begun

    async def _give_back_lease(self) -> None:
        with contextlib.suppress(*self.outages):  # it expires by itself
            await self._free_lease(self._holder.to_text())

    @abstractmethod
    async def is_planned(self) -> bool:
        """Whether all jobs of this run are in the store."""

    @abstractmethod
    async def clear(self) -> None:
        """Delete this run's jobs, which an unfinished plan may have left."""

    @abstractmethod
    async def add(self, jobs: Sequence[Job]) -> None:
        """Add new jobs in ascending order. None of them may be in the store yet.

        Raises:
            StoreUnavailableError: the store is unavailable. This is not repeated; the whole plan is.
        """

    @abstractmethod
    async def mark_planned(self) -> None:
        """Mark the run as planned: all of its jobs have been added."""

    @abstractmethod
    async def unfinished_numbers(self) -> Sequence[int]:
        """The numbers of all jobs that are neither done nor failed, ascending, at 8 bytes each."""

    @abstractmethod
    async def unfinished(self, first: int, last: int) -> list[Job]:
        """The jobs from number ``first`` to ``last`` inclusive that are neither done nor failed."""

    @abstractmethod
    def all_jobs(self, batch_size: int = 2_000) -> AsyncIterator[list[Job]]:
        """All jobs in ascending order, in batches of at most ``batch_size``."""

    async def all_columns(
        self, names: Sequence[str], *, failed_only: bool = False, batch_size: int = 5_000
    ) -> AsyncIterator[pa.RecordBatch]:
        """These fields of all jobs in ascending order, or of the failed ones, in batches, as columns.

        Numbers with a fraction may be rounded to fifteen digits.
        """
        values_of = attrgetter(*names)
        async for jobs in self.all_jobs(batch_size):
            chosen = [job for job in jobs if job.status is JobStatus.FAILED] if failed_only else jobs
            if chosen:
                yield record_batch(names, list(zip(*map(values_of, chosen), strict=True)))

    async def totals(self) -> JobTotals:
        """Count the run's jobs, with what the store no longer took: it is what a run that stops has done."""
        totals = await self._totals()
        if self._failure is None or not self._dirty:
            return totals
        before: list[Job] = []
        for block in {number // _BLOCK for number in self._dirty}:
            found = await self.unfinished(block * _BLOCK, (block + 1) * _BLOCK - 1)
            before += [job for job in found if job.number in self._dirty]
        now = [
            replace(job, **dict(zip(STATE_FIELDS, self._dirty[job.number][1:], strict=True)))
            for job in before
        ]
        return totals.after(before, now)

    @abstractmethod
    async def _totals(self) -> JobTotals:
        """Count the jobs as the store has them."""

    @abstractmethod
    async def _open(self) -> None:
        """Connect within ``CONNECT_S`` seconds, or raise InputError."""

    async def _load(self) -> None:  # noqa: B027 - most stores have nothing to load
        """Read the store's content, once this process holds the lease."""

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        """Write states; with ``durable``, they must survive a crash when this returns."""

    @abstractmethod
    async def _lease(self, holder: str, instead_of: str | None) -> str:
        """Take the lease, atomically, if it is free, expired or held by ``instead_of``; its holder then."""

    @abstractmethod
    async def _renew_lease(self, holder: str) -> bool:
        """Renew the lease, even if it has expired; False if another process holds it."""

    @abstractmethod
    async def _free_lease(self, holder: str) -> None:
        """Release the lease, if ``holder`` has it."""


async def _shielded(action: Callable[[], Awaitable[None]]) -> None:
    """Run an action to its end even if the run is cancelled."""
    with anyio.CancelScope(shield=True):
        await action()


def reason_of(error: BaseException) -> str:
    """The reason in a driver's exception, without the values of the statement."""
    error = (
        getattr(error, "orig", None) or error
    )  # SQLAlchemy's wrapper adds the statement and its parameters
    if isinstance(error, sqlite3.Error):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:  # drivers wrap the error of the operating system
        if isinstance(cause, OSError) and (cause.errno or cause.strerror):
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return type(error.__cause__ or error).__name__


class Shard(NamedTuple):
    """The unfinished jobs from number ``first`` to ``last`` inclusive."""

    first: int
    last: int


def shards(numbers: Iterable[int], size: int) -> list[Shard]:
    """Split ascending job numbers into shards of ``size`` jobs."""
    found: list[Shard] = []
    first = last = -1
    count = 0
    for number in numbers:
        if count == size:
            found.append(Shard(first, last))
            count = 0
        if count == 0:
            first = number
        last = number
        count += 1
    if count:
        found.append(Shard(first, last))
    return found
