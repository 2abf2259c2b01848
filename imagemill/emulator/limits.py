"""Limits: slots with a line before them, token buckets, a rate that moves; all free of clocks and waits."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["DynamicRate", "Limits", "Refused", "TokenBucket"]

_ROUNDING = 1e-9


class TokenBucket:
    """A token bucket: `burst` requests at once, refilled at `per_minute` requests a minute."""

    def __init__(self, per_minute: float, burst: int, now: float) -> None:
        """Start full at the monotonic time `now`, in seconds."""
        self.per_second = per_minute / 60
        self.burst = burst
        self._tokens = float(burst)
        self._at = now

    def _refill(self, now: float) -> None:
        self._tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * self.per_second)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token; return 0, or the seconds until there will be one when there is none."""
        wait = self.wait(now)
        if wait == 0:
            self._tokens = max(0.0, self._tokens - 1)
        return wait

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token, 0 when there is one now."""
        self._refill(now)
        missing = 1 - self._tokens
        return missing / self.per_second if missing > _ROUNDING else 0.0

    def remaining(self, now: float) -> int:
        """Return the whole tokens that are left."""
        self._refill(now)
        return int(self._tokens + _ROUNDING)

    def reset(self, now: float) -> float:
        """Return the seconds until the bucket is full."""
        self._refill(now)
        return (self.burst - self._tokens) / self.per_second

    def reshape(self, per_minute: float, burst: int, now: float) -> None:
        """Change rate and capacity, keeping the tokens as far as they fit."""
        self._refill(now)
        self.per_second = per_minute / 60
        self.burst = burst
        self._tokens = min(self._tokens, float(burst))


@dataclass(frozen=True, slots=True)
class Refused:
    """A request beyond a limit; `wait_s` are the seconds until another try, None if unknown.

    `limit` is "concurrency", "rate" or, where the vendor's own capacity is what lacks, "capacity".
    """

    limit: Literal["concurrency", "rate", "capacity"]
    wait_s: float | None


class DynamicRate:
    """Together's limit: it follows what succeeded in the window before, and is counted per second.

    Allowed are `growth` times the successes of the window, spread over the window, and never less than
    `base_per_minute`. A request beyond that is refused for its "rate" (429). One within it that meets more
    requests in this second than the vendor has capacity for is refused for "capacity" (503).

    Source: docs.together.ai/docs/rate-limits, read 2026-11-25. Unconfirmed: the exact formula, which the
    vendor says it is still tuning, and that a second's allowance can be used all at once.
    """

    _PARTS = 60

    def __init__(
        self,
        base_per_minute: float,
        now: float,
        *,
        growth: float = 2.0,
        window_s: float = 3600.0,
        capacity_per_s: float | None = None,
    ) -> None:
        """Start as a new account at the monotonic time `now`, in seconds."""
        self.base_per_minute = base_per_minute
        self.growth = growth
        self.window_s = window_s
        self._successes: deque[tuple[float, int]] = deque()
        self._sum = 0
        self.bucket = TokenBucket(base_per_minute, _second(base_per_minute), now)
        self.capacity = _capacity(capacity_per_s, now)

    def reshape(
        self,
        base_per_minute: float,
        now: float,
        *,
        growth: float,
        window_s: float,
        capacity_per_s: float | None,
    ) -> None:
        """Change the settings, keeping what was used."""
        self.base_per_minute, self.growth, self.window_s = base_per_minute, growth, window_s
        self.capacity = _capacity(capacity_per_s, now)

    def per_minute(self, now: float) -> float:
        """Return the rate allowed now, in requests a minute."""
        while self._successes and self._successes[0][0] <= now - self.window_s:
            self._sum -= self._successes.popleft()[1]
        return max(self.base_per_minute, self.growth * self._sum * 60 / self.window_s)

    def take(self, now: float) -> Refused | None:
        """Take a request, or say why it is refused; only a request beyond the rate consumes nothing."""
        rate = self.per_minute(now)
        self.bucket.reshape(rate, _second(rate), now)
        wait = self.bucket.take(now)
        if wait > 0:
            return Refused("rate", wait)
        if self.capacity is not None and (wait := self.capacity.take(now)) > 0:
            return Refused("capacity", wait)
        return None

    def succeeded(self, now: float) -> None:
        """Count a request that succeeded; times are kept to a sixtieth of the window, and rounded up."""
        self._sum += 1
        if self._successes and now < self._successes[-1][0]:
            until, count = self._successes[-1]
            self._successes[-1] = (until, count + 1)
        else:
            self._successes.append((now + self.window_s / self._PARTS, 1))


def _second(per_minute: float) -> int:
    """Return the whole requests of one second at a rate, at least one."""
    return max(1, int(per_minute / 60 + _ROUNDING))


def _capacity(per_s: float | None, now: float) -> TokenBucket | None:
    return None if per_s is None else TokenBucket(per_s * 60, max(1, int(per_s)), now)


class Limits:
    """The slots of an account, the line of those who wait for one, and its token bucket.

    An API that refuses calls :meth:`admit`. One that queues calls :meth:`line_up`: beyond `max_concurrent`
    requests wait their turn, and only those that have a slot count as in flight.
    """

    def __init__(self) -> None:
        """Start without limits and with nothing in flight."""
        self.max_concurrent: int | None = None
        self.bucket: TokenBucket | None = None
        self.in_flight = 0
        self.peak_in_flight = 0
        self._line: OrderedDict[int, Callable[[], None]] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    def configure(self, max_concurrent: int | None, per_minute: float | None, burst: int, now: float) -> None:
        """Set the limits; a token bucket that stays keeps its tokens."""
        self.max_concurrent = max_concurrent
        if per_minute is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = TokenBucket(per_minute, burst, now)
        else:
            self.bucket.reshape(per_minute, burst, now)
        self._dispatch()

    def admit(self, now: float) -> Refused | None:
        """Take a slot and a token, or take nothing and say which limit refuses."""
        if self._full:
            return Refused("concurrency", None)
        if refused := self.take_token(now):
            return refused
        self._begin()
        return None

    def take_token(self, now: float) -> Refused | None:
        """Take a token only, or say that there is none."""
        wait = self.bucket.take(now) if self.bucket is not None else 0.0
        return Refused("rate", wait) if wait > 0 else None

    def line_up(self, begin: Callable[[], None]) -> int:
        """Wait for a slot, behind those who wait already; `begin` is called with the slot taken.

        Returns a number for :meth:`leave` and :meth:`position`.
        """
        number = next(self._numbers)
        self._line[number] = begin
        self._dispatch()
        return number

    def leave(self, number: int) -> None:
        """Leave the line, if still in it."""
        self._line.pop(number, None)

    def position(self, number: int) -> int:
        """Return how many are ahead in the line; 0 for one that has left it."""
        return list(self._line).index(number) if number in self._line else 0

    def release(self) -> None:
        """Give a slot back, to the first in line."""
        self.in_flight -= 1
        self._dispatch()

    @property
    def _full(self) -> bool:
        return self.max_concurrent is not None and self.in_flight >= self.max_concurrent

    def _begin(self) -> None:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def _dispatch(self) -> None:
        while self._line and not self._full:
            _, begin = self._line.popitem(last=False)
            self._begin()
            begin()
