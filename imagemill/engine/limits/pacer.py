"""Paces requests: how many at once, how many a minute, and when nobody may send at all.

:class:`.LimitSearch` finds the account's limit from what comes back; it is
a pure object. :class:`Pacer` is what waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import anyio

from imagemill.engine.limits.concurrency_search import CEILING
from imagemill.engine.limits.leased_rate import EvenRate, Rate
from imagemill.engine.limits.limit_search import Limit, LimitSearch, Sent
from imagemill.engine.limits.queue_depth import QueueDepth
from imagemill.engine.limits.rate_search import START_PER_S
from imagemill.request_watch import RequestState, RequestWatch

__all__ = ["CEILING", "Limit", "PaceOfAll", "Pacer", "Slot", "SlotWatch", "StoppedError"]

_AT_ONCE_PER_S = 2000.0
"""The first pace where it is the depth of a queue, or a number that was told, that holds requests back."""
_LONGEST_HOLD_S = 300.0
_ROUNDED_UP_S = 1.0
"""Retry-After is in whole seconds, rounded up: one second may mean a hundredth. The job that was told waits
it out; the others, who are paced anyway, do not stand still for a second at each refusal."""


class StoppedError(Exception):
    """The run is stopping: nothing more is sent."""


@dataclass(slots=True)
class Slot:
    """One request's place. ``served``: it was answered with an image; ``refused``: with a 429."""

    sent: Sent
    served: bool = False
    refused: bool = False
    retry_after_s: float | None = None
    state: RequestState | None = None


class Pacer:
    """Lets requests through, first come, first served; one for all jobs of a process.

    Args:
        concurrency: requests at once, fewer and paced only once the account refuses some; None searches for
            its limit.
        per_minute: never more images a minute than this.
        known: what the account took last; the search starts there, and not at 10 requests at once.
        leased: a rate that is held together with other processes, instead of ``per_minute``.
        first_per_s: the first pace, in requests per second, where no limit is known.
        queues: the API queues what is too much and reports each request's state: keep it just full.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        concurrency: int | None,
        per_minute: float | None = None,
        *,
        known: Limit | None = None,
        leased: Rate | None = None,
        first_per_s: float = START_PER_S,
        queues: bool = False,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._depth = None
        if queues and concurrency is None:
            self._depth = QueueDepth(known.concurrency) if known else QueueDepth()
            known, first_per_s = Limit(CEILING), _AT_ONCE_PER_S
        elif concurrency is not None:
            known, first_per_s = Limit(concurrency), _AT_ONCE_PER_S
        self._search = LimitSearch(known, first_per_s, ceiling=concurrency or CEILING)
        self._is_told = concurrency is not None
        self._rate = leased or (EvenRate(per_minute) if per_minute else None)
        self._clock = clock
        self._queue: deque[anyio.Event] = deque()
        self._changed: anyio.Event | None = None
        self._next_paced_at = -math.inf
        self._paused_until = -math.inf
        self._stopped = False
        self._paced = False
        self.on_change: Callable[[], None] | None = None
        """Called when a request may perhaps be sent, for who does not wait in :meth:`acquire`."""
        self.unsent: Callable[[], float] = lambda: math.inf
        """How many jobs wait for a request: for the last ones no limit is looked for. A look that is refused
        is the last to come home, and nothing is left that could use what it finds."""
        self.in_flight = 0
        self.rate_limited = 0

    @property
    def concurrency(self) -> int:
        """Requests at once, as of now; at an API that queues, those that it makes at once."""
        if self._depth:
            return self._depth.slots
        return self._search.concurrency

    def learned(self) -> Limit | None:
        """What the search found; None where the number was told, or no limit was met."""
        if self._depth and self._depth.slots > 1:
            return Limit(self._depth.slots)
        return self._search.learned() if self.rate_limited and not self._is_told else None

    def stop(self) -> None:
        """Let nobody through any more; those who wait get a :class:`StoppedError`."""
        self._stopped = True
        self.look_again()

    def look_again(self) -> None:
        """Something has changed: whoever is first in the queue may have to wait no more."""
        if self._changed is not None:
            self._changed.set()
        if self.on_change is not None:
            self.on_change()

    def wait_s(self) -> float:
        """Seconds until a request may leave: 0 now, infinite until one comes back. Then :meth:`take`."""
        wait_s = self._wait_s()
        if wait_s:
            self._paced = self._is_paced(wait_s)
        return wait_s

    def take(self) -> Slot:
        """Take a place that is free, as :meth:`wait_s` says."""
        paced, self._paced = self._paced, False
        return self._slot(paced=paced)

    async def acquire(self) -> Slot:
        """Wait for a place among the requests in flight. Give it back with :meth:`release`.

        Raises:
            StoppedError: the run is stopping.
        """
        paced = False
        if self._queue or self._wait_s() != 0:
            paced = await self._queued()
        elif self._stopped:
            raise StoppedError
        return self._slot(paced=paced)

    def _slot(self, *, paced: bool) -> Slot:
        now = self._clock()
        self.in_flight += 1
        if self._rate:
            self._rate.take(now)
        sent = self._search.sent(self.in_flight, now, paced=paced)
        if self.rate_limited or not self._is_told:
            self._next_paced_at = now + 1.0 / self._search.per_s
        slot = Slot(sent)
        self.move(slot, RequestState.SENT)
        return slot

    def move(self, slot: Slot, state: RequestState | None) -> None:
        """The slot's request is in another state, or over (None); the API's queue may have room for more."""
        if self._depth:
            self._depth.move(slot.state, state, self._clock())
            slot.state = state
            self.look_again()

    def release(self, slot: Slot) -> None:
        """The request is over; the slot says what came back."""
        now = self._clock()
        if slot.refused:
            self.rate_limited += 1
            pause_s = self._search.refused(slot.sent, now)
            retry_after_s = slot.retry_after_s
            if retry_after_s is not None and (retry_after_s > _ROUNDED_UP_S or retry_after_s < pause_s):
                pause_s = min(retry_after_s, _LONGEST_HOLD_S)
            self._paused_until = max(self._paused_until, now + pause_s)
        else:
            self._search.admitted(slot.sent, now, may_look=self.unsent() > self.in_flight)
        self.in_flight -= 1
        self.move(slot, None)
        self.look_again()

    async def _queued(self) -> bool:
        """Wait until it is this request's turn and it may be sent; whether the pace held it back."""
        turn = anyio.Event()
        self._queue.append(turn)
        paced = False
        try:
            if self._queue[0] is not turn:
                await turn.wait()
            while True:
                if self._stopped:
                    raise StoppedError
                wait_s = self._wait_s()
                if wait_s == 0:
                    return paced
                paced = self._is_paced(wait_s)
                self._changed = anyio.Event()
                if wait_s == math.inf:
                    await self._changed.wait()
                else:
                    with anyio.move_on_after(wait_s):
                        await self._changed.wait()
        finally:
            if self._queue[0] is turn:
                self._changed = None  # only the first in the queue waits for it
            self._queue.remove(turn)
            if self._queue:
                self._queue[0].set()

    def _is_paced(self, wait_s: float) -> bool:
        """Whether it is the pace that holds requests back, and not their number."""
        return wait_s < math.inf and self._next_paced_at > self._clock()

    def _wait_s(self) -> float:
        """Seconds until the next request may leave: 0 now, infinite until one comes back."""
        if self.in_flight >= self._search.concurrency or (self._depth and self._depth.is_full):
            return math.inf
        ready_at = max(self._paused_until, self._next_paced_at, self._search.ready_at(self.in_flight + 1))
        if self._rate:
            ready_at = max(ready_at, self._rate.ready_at())
        if ready_at == -math.inf:
            return 0.0
        wait_s = ready_at - self._clock()
        return wait_s if wait_s > 1e-9 else 0.0


class PaceOfAll:
    """What is in force and on its way at several pacers."""

    def __init__(self, pacers: Sequence[Pacer]) -> None:
        self._pacers = pacers

    @property
    def concurrency(self) -> int:
        """Requests at once, as of now."""
        return sum(pacer.concurrency for pacer in self._pacers)

    @property
    def in_flight(self) -> int:
        """Requests on their way."""
        return sum(pacer.in_flight for pacer in self._pacers)

    @property
    def rate_limited(self) -> int:
        """Requests that were refused with a 429."""
        return sum(pacer.rate_limited for pacer in self._pacers)


class SlotWatch(RequestWatch):
    """Passes on to the pacer where the slot's request stands at the vendor."""

    def __init__(self, accepted: Callable[..., Awaitable[None]], pacer: Pacer, slot: Slot) -> None:
        super().__init__(accepted)
        self._pacer, self._slot = pacer, slot

    def enter(self, state: RequestState, made_in_s: float) -> None:
        """The vendor reports another state."""
        super().enter(state, made_in_s)
        self._pacer.move(self._slot, state)
