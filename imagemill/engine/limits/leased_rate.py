"""A rate that several processes share: each leases requests in batches and sends them evenly.

Leasing single requests would cost a round trip each, and lose what refills in the meantime. So a process
leases about two seconds' worth of its own share of the rate, one batch ahead, and sends it evenly. A process
that ends does not return what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

BATCH_S = 2.0
"""A batch is what a process's share of the rate allows in this many seconds."""

LEAST_BATCH = 5
"""Nor is a batch ever smaller: the limit loses up to one request at each lease, as it counts whole ones."""

_FIRST_BATCH_S = 0.5
_MADE_UP_FOR_S = 1.0
"""A request that leaves so late at most, in seconds, does not delay those after it."""


class Rate(Protocol):
    """A pace at which requests may leave."""

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds."""

    def take(self, now: float) -> None:
        """A request leaves."""


class JointRate:
    """Several rates, all of which hold: a route's own, and that of the whole run."""

    def __init__(self, *rates: Rate) -> None:
        self._rates = rates

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds."""
        return max(rate.ready_at() for rate in self._rates)

    def take(self, now: float) -> None:
        """A request leaves."""
        for rate in self._rates:
            rate.take(now)


class EvenRate:
    """Spaces requests evenly, ``per_minute`` of them per minute.

    What leaves up to a second late, since the process was busy, is made up for at twice the pace: the minute
    after that may have as many more as it lacked.
    """

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._due_at = -math.inf
        self._next_at = -math.inf

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds."""
        return self._next_at

    def take(self, now: float) -> None:
        """A request leaves."""
        is_late = now - self._due_at <= _MADE_UP_FOR_S  # longer, and there was nothing to send
        self._due_at = (self._due_at if is_late else now) + self._interval
        self._next_at = max(self._due_at, now + self._interval / 2)


class LeasedRate(EvenRate):
    """Spaces leased requests evenly.

    Args:
        per_s: the whole rate, in requests per second.
        lease: waits until the shared limit allows this many requests.
    """

    def __init__(self, per_s: float, lease: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(60.0 * per_s)
        self._per_s = per_s
        self._lease = lease
        self._ahead_s = _FIRST_BATCH_S
        self._wanted = anyio.Event()
        self.share = 1.0
        """This process's share of the rate, from 0 (exclusive) to 1."""
        self.held = 0
        """Requests that are leased but not sent yet."""

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds; infinite while nothing is leased."""
        if self.held < self._batch():
            self._wanted.set()
        return super().ready_at() if self.held else math.inf

    def take(self, now: float) -> None:
        """A request leaves."""
        self.held -= 1
        self._interval = 1.0 / (self._per_s * self.share)
        super().take(now)

    async def keep(self, leased: Callable[[], None]) -> None:
        """Lease a batch whenever less than one is left, and call ``leased``. Runs until cancelled."""
        while True:
            await self._wanted.wait()
            size = self._batch()
            await self._lease(size)
            self.held += size
            self._ahead_s = min(BATCH_S, 2 * self._ahead_s)
            self._wanted = anyio.Event()
            leased()

    def _batch(self) -> int:
        return max(LEAST_BATCH, round(self._ahead_s * self._per_s * self.share))
