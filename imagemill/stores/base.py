"""The interface of a job store, and what all of them share: group commit, patience and the lease.

A store holds the jobs of one run. The engine changes a job in memory and hands it to :meth:`save`; one
writer collects what was saved and writes it in batches, so that ten thousand finished images are some
hundred commits. :meth:`commit` waits until all that was saved before it is safe.

An open store holds the run's lease, which a heartbeat renews: two processes never work on one run by
mistake. Those that work on it together join the one that holds it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, TypeVar

import anyio
import anyio.abc

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import STATE_FIELDS, Job
from imagemill.stores.lease import Holder

T = TypeVar("T")

COMMIT_INTERVAL_S = 0.05
"""How long the writer collects before it writes, in seconds."""

OUTAGE_S = 60.0
"""How long a store may be away before the run stops, resumably, in seconds."""

LEASE_S = 30.0
"""How long a lease holds unless it is renewed, in seconds; it is renewed three times as often."""

CONNECT_S = 5.0
"""How long a server may take to answer when a store is opened, in seconds."""


@dataclass(frozen=True, slots=True)
class JobTotals:
    """The jobs of a run, counted. Costs in USD; ``reused`` of ``done`` were found in the bucket.

    ``unanswered`` requests were never answered; the API may have charged ``unanswered_usd`` for them.
    """

    done: int = 0
    failed: int = 0
    pending: int = 0
    reused: int = 0
    attempts: int = 0
    retries: int = 0
    cost_usd: float = 0.0
    unanswered: int = 0
    unanswered_usd: float = 0.0

    @property
    def generated(self) -> int:
        """Images that this run paid for and has."""
        return self.done - self.reused


JobState: TypeAlias = tuple[Any, ...]
"""A job's number, then its state fields in order, as they stood when it was saved."""


class JobStore(ABC):
    """The jobs of one run. Use as an async context manager; all methods are of one event loop.

    ``join=True`` works on a run whose lease another process holds, and takes none. ``outage_s`` and
    ``lease_s`` may be set on a store before it is opened.

    Reading is patient, as writing is: a server may be away for ``outage_s`` seconds. Then every method
    raises StoreUnavailableError.
    """

    name: str
    outages: ClassVar[tuple[type[Exception], ...]] = (OSError,)
    """What the store's driver raises when the store is away."""

    def __init__(self, *, join: bool = False) -> None:
        self.outage_s = OUTAGE_S
        self.lease_s = LEASE_S
        self._join = join
        self._holder = Holder.here()
        self._renewed_at = 0.0
        self._dirty: dict[int, JobState] = {}
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
            # Not by commit(): where the run is cancelled, the writer has ended before this.
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

    def save(self, job: Job) -> None:
        """Note a job's state; it is written with the next batch.

        Raises:
            StoreUnavailableError: the store has been away for too long, or another process took the run.
        """
        if self._failure is not None:
            raise self._failure
        self._dirty[job.number] = (job.number, *[getattr(job, name) for name in STATE_FIELDS])
        self._wake.set()

    async def commit(self) -> None:
        """Wait until everything saved before this call is written.

        Raises:
            StoreUnavailableError: the store has been away for too long, or another process took the run.
        """
        if self._failure is None:
            waiter = anyio.Event()
            self._waiters.append(waiter)
            self._wake.set()
            await waiter.wait()
        if self._failure is not None:
            raise self._failure

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
        if batch or waiters:
            try:
                await self.patiently(self._write_leased, list(batch.values()), bool(waiters))
            except StoreUnavailableError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - the engine must hear of it, and stop
                self._fail(StoreUnavailableError(f"{self._title} cannot write: {reason_of(error)}."))
        for waiter in waiters:
            waiter.set()

    async def _write_leased(self, batch: Sequence[JobState], durable: bool) -> None:  # noqa: FBT001
        if self._failure is not None:
            raise self._failure
        if not self._join and anyio.current_time() - self._renewed_at > self.lease_s:
            await self._renew()  # after an outage: somebody else may have taken the run meanwhile
        await self._write(batch, durable=durable)

    def _fail(self, failure: StoreUnavailableError) -> None:
        if self._failure is None:
            self._failure = failure
            self._wake.set()  # nobody waits for a batch that will not be written

    @property
    def _title(self) -> str:
        return f"The job store ({self.name})"

    async def patiently(self, action: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Do something with the store, again and again while it is away; it must bear being done twice.

        Raises:
            StoreUnavailableError: the store has been away for ``outage_s`` seconds.
        """
        begun = anyio.current_time()
        wait = 0.1
        while True:
            try:
                return await action(*arguments)
            except self.outages as error:
                away = anyio.current_time() - begun
                if self._failure is not None or away >= self.outage_s:
                    raise StoreUnavailableError(
                        f"{self._title} has not answered for {away:.0f} s ({reason_of(error)})."
                    ) from error
            await anyio.sleep(min(wait, max(0.0, self.outage_s - away)))
            wait = min(wait * 2, 5.0)

    async def _take_lease(self) -> None:
        mine = self._holder.to_text()
        held = await self.patiently(self._lease, mine, None)
        other = Holder.of_text(held)
        if held != mine and (other is None or other.is_gone()):
            held = await self.patiently(self._lease, mine, held)
            other = Holder.of_text(held)
        if held != mine:
            raise InputError(
                f"The run is being worked on by {other}: wait for its end, or stop it. If that machine is"
                f" down, the run can be resumed in {self.lease_s:.0f} s."
            )
        self._renewed_at = anyio.current_time()

    async def _keep_lease(self) -> None:
        while self._failure is None:
            await anyio.sleep(self.lease_s / 3)
            try:
                await self._renew()
            except StoreUnavailableError as error:
                self._fail(error)
            except self.outages:
                continue  # the writer is patient, and says when it is not any more

    async def _renew(self) -> None:
        if not await self._renew_lease(self._holder.to_text()):
            raise StoreUnavailableError(
                f"{self._title} says that another process took the run: this one has stopped."
            )
        self._renewed_at = anyio.current_time()

    async def _give_back_lease(self) -> None:
        with contextlib.suppress(*self.outages):  # then it expires
            await self._free_lease(self._holder.to_text())

    @abstractmethod
    async def is_planned(self) -> bool:
        """Whether this run's jobs are all in the store."""

    @abstractmethod
    async def clear(self) -> None:
        """Forget this run: what a broken-off plan left behind."""

    @abstractmethod
    async def add(self, jobs: Sequence[Job]) -> None:
        """Add new jobs, by ascending number, of which none is in the store yet.

        Raises:
            StoreUnavailableError: the store is away: this is not tried again, the plan is.
        """

    @abstractmethod
    async def mark_planned(self) -> None:
        """All jobs of this run have been added."""

    @abstractmethod
    async def unfinished_numbers(self) -> Sequence[int]:
        """The numbers of all jobs not done and not failed, ascending: 8 bytes a number."""

    @abstractmethod
    async def unfinished(self, first: int, last: int) -> list[Job]:
        """The jobs from number ``first`` to ``last``, both included, that are not done and not failed."""

    @abstractmethod
    def all_jobs(self, batch_size: int = 2_000) -> AsyncIterator[list[Job]]:
        """All jobs by ascending number, in batches of at most ``batch_size``."""

    @abstractmethod
    async def totals(self) -> JobTotals:
        """The run's jobs, counted."""

    @abstractmethod
    async def _open(self) -> None:
        """Connect; within ``CONNECT_S`` seconds, or raise InputError."""

    async def _load(self) -> None:  # noqa: B027 - most stores have nothing to load
        """Read what the store holds, now that the run is this process's own."""

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        """Write states; ``durable`` when somebody waits for it to be safe."""

    @abstractmethod
    async def _lease(self, holder: str, instead_of: str | None) -> str:
        """Take the lease if it is free, expired or ``instead_of`` holds it: one step. Who holds it then."""

    @abstractmethod
    async def _renew_lease(self, holder: str) -> bool:
        """Let the lease hold on; False where it is another's. One that expired unnoticed is renewed."""

    @abstractmethod
    async def _free_lease(self, holder: str) -> None:
        """Give the lease back, if ``holder`` has it."""


async def _shielded(action: Callable[[], Awaitable[None]]) -> None:
    """An interrupted run, too, leaves nothing open."""
    with anyio.CancelScope(shield=True):
        await action()


def reason_of(error: BaseException) -> str:
    """What a driver's exception says, without the values it was handling."""
    error = getattr(error, "orig", None) or error  # SQLAlchemy's wrapper adds statement and parameters
    if isinstance(error, sqlite3.Error):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:  # drivers wrap what the system said
        if isinstance(cause, OSError) and (cause.errno or cause.strerror):
            return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return type(error.__cause__ or error).__name__


class Shard(NamedTuple):
    """The unfinished jobs from number ``first`` to number ``last``, both included."""

    first: int
    last: int


def shards(numbers: Iterable[int], size: int) -> list[Shard]:
    """Cut ascending job numbers into shards of ``size`` jobs."""
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
