"""How many requests an account takes at once: found from the numbers in flight that it served and refused."""

from __future__ import annotations

START = 10
CEILING = 400
PROBE_EVERY_S = 5.0
"""Seconds from one look above a limit that holds to the next."""
_PROBE_AT_ONE_S = 60.0
"""The same at a limit of one, a third of it at three: a look costs a refusal, and few requests are sent."""

_FIRST_PROBE_S = 0.5
"""Seconds to the first probe after a refusal, each that is refused doubles them: was it about the number?"""
_FALL = 0.7


class WindowSearch:
    """The limit on requests in flight; a pure object that is told what came back.

    It grows by one with every answer, as TCP's slow start does, which doubles it in the time of one image.
    A refusal at ``n`` in flight says that ``n - 1`` fit. A limit that holds is probed with one request more
    every few seconds; where that is served, steps of 1, 2, 4 ... follow at once.
    """

    def __init__(self, start: int = START, ceiling: int = CEILING, *, known: bool = False) -> None:
        self.limit = start
        self._ceiling = ceiling
        self._ramping = not known
        self.probing = False
        self.looks = False
        """Whether the next request may be the one more than what fitted, after a while of it."""
        self._step = 1
        self._changed_at: float | None = None
        self._probe_after_s = PROBE_EVERY_S if known else _FIRST_PROBE_S

    def admitted(self, in_flight: int, now: float, *, may_look: bool = True) -> None:
        """A request was let in; ``in_flight`` counts it and those beside it when it was sent."""
        if self._changed_at is None:
            self._changed_at = now
        if in_flight < self.limit:
            if self._ramping and in_flight >= self.limit // 2:
                self._grow(1, now)
            return
        if self._ramping:
            self._grow(1, now)
            return
        if self.probing:
            self._step = min(2 * self._step, max(1, self.limit // 4))
            self._grow(self._step, now)
        elif may_look and self.limit < self._ceiling and now - self._changed_at >= self._probe_after_s:
            self.probing, self._step = True, 1
            self._grow(1, now)
            self.looks = True

    def refused(self, in_flight: int, now: float) -> None:
        """This many at once were too many."""
        if self.probing and self._step == 1:
            longest_s = max(PROBE_EVERY_S, _PROBE_AT_ONE_S / self.limit)
            self._probe_after_s = min(2.0 * self._probe_after_s, longest_s)
        elif self._ramping:
            self._probe_after_s = _FIRST_PROBE_S
        self._ramping = self.probing = self.looks = False
        self._changed_at = now
        if in_flight <= self.limit:
            self._set(in_flight - 1)

    def resume(self) -> None:
        """What was refused lately was not about the number: grow again as in the beginning."""
        self._ramping = True

    def fallen(self, in_flight: int, now: float) -> None:
        """Refusal upon refusal: the account's limit has fallen far. Lower the limit, then climb again."""
        if in_flight > self.limit:
            return
        self._set(int(in_flight * _FALL))
        self._ramping, self.probing, self._step = False, True, 1
        self._changed_at = now

    def _grow(self, by: int, now: float) -> None:
        self._set(self.limit + by)
        self._changed_at = now

    def _set(self, limit: int) -> None:
        self.looks = False
        self.limit = min(max(1, limit), self._ceiling)
