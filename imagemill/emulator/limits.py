"""Limits: a concurrency limit and a token bucket, both free of clocks and waits."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "Refused", "TokenBucket"]

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
    """A request beyond a limit; `wait_s` are the seconds until another try, None if unknown."""

    limit: str
    wait_s: float | None


class Limits:
    """The concurrency limit and the token bucket of an account, held together."""

    def __init__(self) -> None:
        """Start without limits and with nothing in flight."""
        self.max_concurrent: int | None = None
        self.bucket: TokenBucket | None = None
        self.in_flight = 0
        self.peak_in_flight = 0

    def configure(self, max_concurrent: int | None, per_minute: float | None, burst: int, now: float) -> None:
        """Set the limits; a token bucket that stays keeps its tokens."""
        self.max_concurrent = max_concurrent
        if per_minute is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = TokenBucket(per_minute, burst, now)
        else:
            self.bucket.reshape(per_minute, burst, now)

    def admit(self, now: float) -> Refused | None:
        """Take a slot and a token, or take nothing and say which limit refuses."""
        if self.max_concurrent is not None and self.in_flight >= self.max_concurrent:
            return Refused("concurrency", None)
        if self.bucket is not None:
            wait = self.bucket.take(now)
            if wait > 0:
                return Refused("rate", wait)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return None

    def release(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
