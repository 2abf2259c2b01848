"""How many requests to keep in the queue of an API that refuses nothing and lets the rest wait."""

from __future__ import annotations

from collections import Counter, deque

from imagemill.request_watch import RequestState

_LEAST_WAITING = 2
"""With one or two slots, too, the next request is there while the one after it is on the way."""
_REMEMBERED = 100
_FETCHED_AT_ONCE = 64
"""Finished images that are being downloaded: a slow line or bucket must not fill the memory."""


class QueueDepth:
    """Keeps as many requests waiting as are being made; a pure object that is told each request's state.

    While slots are free whatever is sent starts at once, so what is sent doubles with each round trip. Once
    they are taken, one latency's worth of requests waits behind them: no slot idles, and the queue is as long
    as there are slots. Slots that the account gains or loses are followed the same way.
    """

    def __init__(self) -> None:
        self._in = Counter[RequestState]()
        self._in_progress: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def is_full(self) -> bool:
        """Whether one more request would only wait."""
        waiting = self._in[RequestState.SENT] + self._in[RequestState.QUEUED]
        most = max(_LEAST_WAITING, self._in[RequestState.IN_PROGRESS])
        return waiting >= most or self._in[RequestState.COMPLETED] >= _FETCHED_AT_ONCE

    @property
    def slots(self) -> int:
        """Requests that the API made at once of late; 1 before any."""
        return max(self._in_progress, default=1)

    def move(self, before: RequestState | None, after: RequestState | None) -> None:
        """A request went from one state to another; None is before it is sent and after it is over."""
        if before is not None:
            self._in[before] -= 1
        if after is not None:
            self._in[after] += 1
        if after is RequestState.IN_PROGRESS:
            self._in_progress.append(self._in[after])
