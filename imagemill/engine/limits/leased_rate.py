"""A rate that several processes share: each leases requests in batches and sends them evenly.

Leasing single requests would cost a round trip each, and lose what refills in the meantime. So a process
leases about two seconds' worth of the whole rate, one batch ahead, and sends it evenly at its own share of
the rate. A process that ends does not return what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

BATCH_S = 2.0
"""A batch is what the whole rate allows in this many seconds."""

_FIRST_BATCH_S = 0.5
_LEAST_BATCH = 2
_NO_END = 1_000_000


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
    """Spaces requests evenly, at most ``per_minute`` of them per minute."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._next_at = -math.inf

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds."""
        return self._next_at

    def take(self, now: float) -> None:
        """A request leaves."""
        self._next_at = max(self._next_at + self._interval, now)


class LeasedRate:
    """Spaces leased requests evenly.

    Args:
        per_s: the whole rate, in requests per second.
        lease: waits until the shared limit allows this many requests.
        most: the largest batch.
    """

    def __init__(
        self, per_s: float, lease: Callable[[int], Awaitable[None]], *, most: int | None = None
    ) -> None:
        self._per_s = per_s
        self._lease = lease
        self._largest = max(1, min(most or _NO_END, round(BATCH_S * per_s)))
        self._batch = max(1, min(self._largest, max(_LEAST_BATCH, round(_FIRST_BATCH_S * per_s))))
        self._next_at = -math.inf
        self._wanted = anyio.Event()
        self.share = 1.0
        """This process's share of the rate, from 0 (exclusive) to 1."""
        self.held = 0
        """Requests that are leased but not sent yet."""

    def ready_at(self) -> float:
        """When the next request may be sent, in monotonic seconds; infinite while nothing is leased."""
        if self.held < self._batch:
            self._wanted.set()
        return self._next_at if self.held else math.inf

    def take(self, now: float) -> None:
        """A request leaves."""
        self.held -= 1
        self._next_at = max(self._next_at + 1.0 / (self._per_s * self.share), now)

    async def keep(self, leased: Callable[[], None]) -> None:
        """Lease a batch whenever less than one is left, and call ``leased``. Runs until cancelled."""
        while True:
            await self._wanted.wait()
            size = self._batch
            await self._lease(size)
            self.held += size
            self._batch = min(self._largest, 2 * size)
            self._wanted = anyio.Event()
            leased()
