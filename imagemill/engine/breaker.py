"""The circuit breaker: distinguishes an API that is down from one that fails now and then.

It opens when more than a share of recent attempts failed with server errors or timeouts. While it is open,
only one probe is sent every few seconds. A successful probe closes it. If it stays open for too long, the run
stops and can be resumed. An API that has refused every request for as long (429) is no better than one that
is down: no limit on a rate refuses everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from imagemill.errors import ErrorClass

WINDOW = 200
"""The number of recent attempts that count."""
LEAST = 50
"""The breaker does not open before this many attempts."""
PROBE_S = 5.0
"""Seconds between two probes."""
RARE_PROBE_S = 60.0
"""The same once the API has been down for longer than the run waits, and the run goes on elsewhere: each
probe may be charged although its answer never comes."""

OUTAGE = frozenset({ErrorClass.SERVER_ERROR, ErrorClass.TIMEOUT})
"""The error classes with which an API that is down fails."""


_LEAST_REFUSED_S = 120.0
"""Refusals are no outage before, in seconds: a minute's allowance may have been used up by somebody else."""
_SILENT_S = 330.0
"""Without a refusal for so long, in seconds, nobody asked: no Retry-After holds everybody back for longer."""


class OutageError(Exception):
    """The API has been down for longer than the run waits."""


class Breaker:
    """Holds requests back while the API is down.

    Args:
        share: the share of failed attempts, from 0 to 1, above which it opens.
        patience_s: how long it may stay open before the run stops, in seconds.
        in_a_row: it also opens after this many failures without a success, where other APIs can step in.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        share: float,
        patience_s: float,
        *,
        in_a_row: int | None = None,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._share = share
        self._patience_s = patience_s
        self._most_in_a_row = in_a_row
        self._in_a_row = 0
        self._clock = clock
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        self._open_since: float | None = None
        self._asked_at = 0.0
        self._refused_since: float | None = None
        self._refused_at = 0.0
        self._next_probe_at = 0.0
        self._changed = anyio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the API is considered down."""
        return self._open_since is not None

    @property
    def is_refusing(self) -> bool:
        """Whether it is open because the API refuses every request."""
        return self._open_since is not None and self._open_since == self._refused_since

    def accepted(self) -> None:
        """The API has taken a request, whatever becomes of it."""
        self._refused_since = None

    def record(self, error_class: ErrorClass | None) -> bool:
        """Record the result of an attempt; whether this opened or closed the breaker."""
        self._asked_at = self._clock()
        if error_class is ErrorClass.RATE_LIMITED:
            if self.is_refusing:
                return False
            if self._is_refused_too_long():
                self._open_since = self._refused_since
                self.sent()
                return True
        elif error_class not in OUTAGE:
            self.accepted()
        failed = error_class in OUTAGE
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if self._open_since is not None:
            if failed:
                return False
            self._open_since = None
            self._failed.clear()
            self._notify()
            return True
        self._failed.append(failed)
        often = len(self._failed) >= LEAST and sum(self._failed) > self._share * len(self._failed)
        if not often and (self._most_in_a_row is None or self._in_a_row < self._most_in_a_row):
            return False
        self._open_since = self._clock()
        self._next_probe_at = self._open_since + PROBE_S
        return True

    def _is_refused_too_long(self) -> bool:
        """Note a refusal; whether the API has taken nothing for longer than the run waits."""
        now = self._clock()
        if self._refused_since is None or now - self._refused_at > _SILENT_S:
            self._refused_since = now
        self._refused_at = now
        return now - self._refused_since > max(self._patience_s, _LEAST_REFUSED_S)

    @property
    def has_given_up(self) -> bool:
        """Whether the API has been down for longer than the run waits."""
        return self._open_since is not None and self._clock() - self._open_since > self._patience_s

    def wait_s(self) -> float:
        """Seconds until a request may be sent; while the breaker is open, as a probe."""
        return 0.0 if self._open_since is None else max(0.0, self._next_probe_at - self._clock())

    def sent(self) -> None:
        """A request leaves: while the breaker is open, the next probe has to wait."""
        self._next_probe_at = self._clock() + (RARE_PROBE_S if self.has_given_up else PROBE_S)

    async def admit(self, stopping: anyio.Event) -> None:
        """Wait until a request may be sent; while the breaker is open, as a probe.

        Raises:
            OutageError: the API has been down for too long.
        """
        while self._open_since is not None and not stopping.is_set():
            if self.has_given_up:
                raise OutageError
            wait_s = self.wait_s()
            if wait_s == 0:
                self.sent()
                return
            with anyio.move_on_after(wait_s):
                await self._changed.wait()

    def wait_anew(self) -> None:
        """Let the patience begin anew where nobody has asked the API for as long: it may be up again."""
        if self.has_given_up and self._clock() - self._asked_at > self._patience_s:
            now = self._clock()
            if self.is_refusing:
                self._refused_since = self._refused_at = now
            self._open_since = now

    def stop(self) -> None:
        """Wake those who wait, because the run is stopping."""
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
