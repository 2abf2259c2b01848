"""Paces requests: how many at once, how many a minute, and when nobody may send at all.

:class:`ConcurrencySearch` is a pure object fed with samples; :class:`Pacer` is what waits. The search
starts at 10 and doubles until the API answers 429, then halves the distance between the last number that
was good and the first that was bad, then holds, and looks a little higher now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import anyio

START = 10
CEILING = 400
HOLD_S = 15.0
"""How long a limit that was found is held before a higher one is tried again, in seconds."""


class StoppedError(Exception):
    """The run is stopping: nothing more is sent."""


class ConcurrencySearch:
    """Finds how many requests an account takes at once, from which came back with a 429.

    ``limit`` is the number in force. Each change begins a new round; what was sent in an earlier round
    says nothing about this one.
    """

    def __init__(self, start: int = START, ceiling: int = CEILING) -> None:
        self.limit = start
        self.round = 0
        self._ceiling = ceiling
        self._good = 0
        self._bad: int | None = None
        self._answers = 0
        self._busiest = 0
        self._settled_at: float | None = None

    def answered(self, sent_in: int, in_flight: int, now: float) -> None:
        """A request was served; ``in_flight`` counts it. Raises the limit after a whole round."""
        if sent_in != self.round:
            return
        self._answers += 1
        self._busiest = max(self._busiest, in_flight)
        if self._answers < 2 * self.limit or self._busiest < self.limit:
            return
        self._good = max(self._good, self.limit)
        if self._bad is None:
            self._move(min(self.limit * 2, self._ceiling))
        elif self._bad - self._good > max(1, self._good // 20):
            self._move((self._good + self._bad) // 2)
        elif self._settled_at is None:
            self._settled_at = now
        elif now - self._settled_at >= HOLD_S:
            self._bad = None
            self._settled_at = None
            self._move(min(self.limit + max(1, self.limit // 10), self._ceiling))

    def refused(self, sent_in: int, in_flight: int, now: float) -> bool:
        """A request came back with a 429; ``in_flight`` counts it. Whether the limit was lowered."""
        if sent_in != self.round:
            return False
        self._bad = min(self.limit, max(2, in_flight))
        if self._good >= self._bad:
            self._good = self._bad // 2  # the account's limit has fallen
        self._settled_at = now if self._bad - self._good <= 1 else None
        self._move(max(1, (self._good + self._bad) // 2 if self._good else self._bad // 2))
        return True

    def _move(self, limit: int) -> None:
        if limit != self.limit or self._bad is not None:
            self.round += 1
        self.limit = limit
        self._answers = self._busiest = 0


@dataclass(slots=True)
class Slot:
    """One request's place. ``served``: it was answered; ``refused``: with a 429."""

    round: int
    served: bool = False
    refused: bool = False
    retry_after_s: float | None = None


class Pacer:
    """Lets requests through, first come, first served; one for all jobs of a process.

    Args:
        concurrency: requests at once; None searches for the account's limit.
        per_minute: never more images a minute than this.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        concurrency: int | None,
        per_minute: float | None = None,
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._search = ConcurrencySearch() if concurrency is None else None
        self._fixed = concurrency or 0
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._head = anyio.Lock()
        self._changed = anyio.Event()
        self._next_at = -math.inf
        self._paused_until = -math.inf
        self._stopped = False
        self.in_flight = 0
        self.rate_limited = 0

    @property
    def concurrency(self) -> int:
        """Requests at once, as of now."""
        return self._search.limit if self._search else self._fixed

    def stop(self) -> None:
        """Let nobody through any more; those who wait get a :class:`StoppedError`."""
        self._stopped = True
        self._notify()

    async def acquire(self) -> Slot:
        """Wait for a place among the requests in flight. Give it back with :meth:`release`.

        Raises:
            StoppedError: the run is stopping.
        """
        async with self._head:
            while True:
                if self._stopped:
                    raise StoppedError
                now = self._clock()
                ready_at = max(self._paused_until, self._next_at)
                if self.in_flight >= self.concurrency:
                    await self._changed.wait()
                elif ready_at > now:
                    with anyio.move_on_after(ready_at - now):
                        await self._changed.wait()
                else:
                    break
            if self._interval:
                self._next_at = max(self._next_at + self._interval, now)
            self.in_flight += 1
            return Slot(self._search.round if self._search else 0)

    def release(self, slot: Slot) -> None:
        """The request is over; the slot says what came back."""
        if slot.refused:
            self._refuse(slot)
        elif slot.served and self._search:
            self._search.answered(slot.round, self.in_flight, self._clock())
        self.in_flight -= 1
        self._notify()

    def _refuse(self, slot: Slot) -> None:
        self.rate_limited += 1
        now = self._clock()
        lowered = True
        if self._search:
            lowered = self._search.refused(slot.round, self.in_flight, now)
        if slot.retry_after_s is not None:
            self._paused_until = max(self._paused_until, now + min(slot.retry_after_s, 300.0))
        elif lowered:
            self._paused_until = max(self._paused_until, now + 0.5)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
