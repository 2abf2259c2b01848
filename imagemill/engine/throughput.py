"""What a route does lately: requests per second, and how long an image takes."""

from __future__ import annotations

import math

_KEPT_S, _KEPT_AT_FIRST_S = 20.0, 1.0
"""Older requests count less: by 1/e after so many seconds, after fewer while the pace still grows."""
_KEPT_OF_AGE = 1 / 3
_LATENCIES = 10.0
_FORGOTTEN = 0.01
"""With each image, what is known of the slowest one shrinks by this share."""


class Throughput:
    """How much a route makes, and how fast; a pure object."""

    def __init__(self) -> None:
        self.latency_s = 0.0
        """Mean seconds from a request to its image, the vendor's queue included; 0 before the first."""
        self.slowest_s = 0.0
        """What the slowest of the latest hundred took about, in seconds."""
        self._at: float | None = None
        self._since = math.inf
        self._seconds = self._sent = 0.0

    def per_s(self, now: float) -> float:
        """Requests per second that did not fail."""
        self._pass(now)
        return self._sent / self._seconds if self._seconds else 0.0

    def age_s(self, now: float) -> float:
        """Seconds since the first request; less than 0 before it."""
        return now - self._since

    def sent(self, now: float) -> None:
        """A request leaves."""
        self._since = min(self._since, now)
        self._pass(now)
        self._at, self._sent = now, self._sent + 1.0

    def failed(self) -> None:
        """A request brought no image."""
        self._sent = max(0.0, self._sent - 1.0)

    def served(self, took_s: float) -> None:
        """A request was answered with its image after so long."""
        self.latency_s += (took_s - self.latency_s) / (_LATENCIES if self.latency_s else 1.0)
        self.slowest_s = max(took_s, (1.0 - _FORGOTTEN) * self.slowest_s)

    def _pass(self, now: float) -> None:
        """Time passes, once there was a first request."""
        if self._at is not None:
            kept_s = min(max(_KEPT_AT_FIRST_S, _KEPT_OF_AGE * self.age_s(now)), _KEPT_S)
            kept = math.exp((self._at - now) / kept_s)
            self._seconds = kept * self._seconds + now - self._at
            self._sent, self._at = kept * self._sent, now
