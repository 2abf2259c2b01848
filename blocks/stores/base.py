"""The interface of a job store, and the group commit that all of them share.

A store holds the jobs of one run. The engine changes a job in memory and hands it to :meth:`save`; one
writer collects what was saved and writes it in batches, so that ten thousand finished images are some
hundred commits. :meth:`commit` waits until all that was saved before it is safe.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import anyio
import anyio.abc

from blocks.errors import StoreUnavailableError
from blocks.jobs import STATE_FIELDS, Job

COMMIT_INTERVAL_S = 0.05
"""How long the writer collects before it writes, in seconds."""

OUTAGE_S = 60.0
"""How long a store may be away before the run stops, resumably, in seconds."""


@dataclass(frozen=True, slots=True)
class JobTotals:
    """The jobs of a run, counted. Costs in USD; ``reused_jobs`` of ``done`` were found in the bucket."""

    done: int = 0
    failed: int = 0
    pending: int = 0
    reused: int = 0
    attempts: int = 0
    retries: int = 0
    cost_usd: float = 0.0

    @property
    def generated(self) -> int:
        """Images that this run paid for and has."""
        return self.done - self.reused


JobState: TypeAlias = tuple[Any, ...]
"""A job's number, then its state fields in order, as they stood when it was saved."""


class JobStore(ABC):
    """The jobs of one run. Use as an async context manager; all methods are of one event loop."""

    name: str

    def __init__(self) -> None:
        self._dirty: dict[int, JobState] = {}
        self._waiters: list[anyio.Event] = []
        self._wake = anyio.Event()
        self._failure: StoreUnavailableError | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open()
            stack.push_async_callback(self._close)
            writer = await stack.enter_async_context(anyio.create_task_group())
            writer.start_soon(self._write_batches)
            stack.callback(writer.cancel_scope.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with anyio.CancelScope(shield=True), contextlib.suppress(StoreUnavailableError):
                await self.commit()
        finally:
            await self._stack.aclose()

    def save(self, job: Job) -> None:
        """Note a job's state; it is written with the next batch.

        Raises:
            StoreUnavailableError: the store has been away for too long.
        """
        if self._failure is not None:
            raise self._failure
        self._dirty[job.number] = (job.number, *[getattr(job, name) for name in STATE_FIELDS])
        self._wake.set()

    async def commit(self) -> None:
        """Wait until everything saved before this call is written.

        Raises:
            StoreUnavailableError: the store has been away for too long.
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
            await anyio.sleep(COMMIT_INTERVAL_S)
            self._wake = anyio.Event()
            batch, self._dirty = self._dirty, {}
            waiters, self._waiters = self._waiters, []
            with anyio.CancelScope(shield=True):
                await self._write_patiently(list(batch.values()), durable=bool(waiters))
            for waiter in waiters:
                waiter.set()

    async def _write_patiently(self, batch: Sequence[JobState], *, durable: bool) -> None:
        wait, waited = 0.2, 0.0
        while True:
            try:
                return await self._write(batch, durable=durable)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises, it is an outage
                if waited >= OUTAGE_S:
                    self._failure = StoreUnavailableError(
                        f"The job store ({self.name}) has not answered for {waited:.0f} s"
                        f" ({type(error).__name__})."
                    )
                    return None
            await anyio.sleep(wait)
            waited += wait
            wait = min(wait * 2, 5.0)

    @abstractmethod
    async def is_planned(self) -> bool:
        """Whether this run's jobs are all in the store."""

    @abstractmethod
    async def clear(self) -> None:
        """Forget this run: what a broken-off plan left behind."""

    @abstractmethod
    async def add(self, jobs: Sequence[Job]) -> None:
        """Add new jobs, of which none is in the store yet."""

    @abstractmethod
    async def mark_planned(self) -> None:
        """All jobs of this run have been added."""

    @abstractmethod
    async def unfinished_numbers(self) -> Sequence[int]:
        """The numbers of all jobs not done and not failed, ascending."""

    @abstractmethod
    async def unfinished(self, first: int, last: int) -> list[Job]:
        """The jobs from number ``first`` to ``last``, both included, that are not done and not failed."""

    @abstractmethod
    def all_jobs(self, batch_size: int = 10_000) -> AsyncIterator[list[Job]]:
        """All jobs by ascending number, in batches."""

    @abstractmethod
    async def totals(self) -> JobTotals:
        """The run's jobs, counted."""

    @abstractmethod
    async def _open(self) -> None: ...

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        """Write states; ``durable`` when somebody waits for it to be safe."""


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
