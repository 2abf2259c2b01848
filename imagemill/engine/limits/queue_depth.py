"""How many requests to keep in the queue of an API that refuses nothing and lets the rest wait."""

from __future__ import annotations

import math
from collections import Counter

from imagemill.request_watch import RequestState

_LEAST_WAITING = 2
"""With one or two slots, too, the next request is there while the one after it is on the way."""
_SPARE = 2
"""Further requests that wait: with few slots, one would idle until the news of a finished image arrives."""
_MOST_PER_SLOT = 3
_FIRST = 4
"""Sent at once in the beginning: a new account at fal has two slots."""
_AVERAGED_S = 10.0
_FETCHED_AT_ONCE = 64
"""Finished images that are being downloaded: a slow line or bucket must not fill the memory."""


class QueueDepth:
    """Keeps as many requests waiting as are being made; a pure object that is told each request's state.

    While slots are free whatever is sent starts at once, so what is sent doubles with each round trip. Once
    they are taken, one latency's worth of requests waits behind them: no slot idles, and the queue is as long
    as there are slots. Slots that the account gains or loses are followed the same way.

    Args:
        known: slots that the account had lately: so many are sent at once in the beginning.
    """

    def __init__(self, known: int = _FIRST) -> None:
        self._expected = known
        self._in = Counter[RequestState]()
        self._moved_at = self._seconds = self._slot_seconds = 0.0

    @property
    def is_full(self) -> bool:
        """Whether one more request would only wait."""
        waiting = self._in[RequestState.SENT] + self._in[RequestState.QUEUED]
        in_progress = self._in[RequestState.IN_PROGRESS]
        spare = min(in_progress, _SPARE)
        most = max(_LEAST_WAITING, in_progress + spare, self._expected - in_progress)
        if self._seconds:
            most = min(most, _MOST_PER_SLOT * self.slots)
        return waiting >= most or self._in[RequestState.COMPLETED] >= _FETCHED_AT_ONCE

    @property
    def slots(self) -> int:
        """Requests that the API makes at once, on the average of the last seconds with a queue; 1 before."""
        return max(1, round(self._slot_seconds / self._seconds)) if self._seconds else 1

    def move(self, before: RequestState | None, after: RequestState | None, now: float) -> None:
        """A request went from one state to another; None is before it is sent and after it is over."""
        if self._in[RequestState.QUEUED]:
            spent_s = now - self._moved_at
            kept = math.exp(-spent_s / _AVERAGED_S)
            self._seconds = kept * self._seconds + spent_s
            self._slot_seconds = kept * self._slot_seconds + spent_s * self._in[RequestState.IN_PROGRESS]
        self._moved_at = now
        if before is not None:
            self._in[before] -= 1
        if after is not None:
            self._in[after] += 1
        if after is RequestState.QUEUED:
            self._expected = 0  # the slots are taken: from here on they are counted
