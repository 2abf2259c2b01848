"""The share of requests that an API refuses at any pace, because it has too much to do."""

from __future__ import annotations

from collections import deque

_VERDICTS, _AMONG = 9, 120
"""So many slowdowns in so many requests have not helped: a limit is under long before."""
_APART = 3
"""Closer on one another they count once: a limit that was halved refuses many, but in one go."""
_MOST = 0.3
_MORE = 1.5
"""With the pace given back, a busy API lets in so many times as many; a limit lets in what it did."""
_RESERVE = 10
"""Requests that a bucket may have in reserve."""
_LEEWAY = 1.5
_MOST_CREDIT = 6.0
"""At half as much again as the share, chance uses up six refusals' credit once in some two thousand requests,
a limit that is exceeded in two dozen."""
_FIRST_LOOK, _LOOK_EVERY = 150, 1000
"""Requests until the share is measured anew."""
_LOOK, _LATE = 80, 10
"""Requests from which it is measured, and those until their refusals are here."""
_LOWER = 0.75
_GONE = 0.2
"""What a look finds less than this of the share: it was a limit, or the API is busy no more."""


class BusyShare:
    """Tells refusals that come at any pace from those of a limit; a pure object.

    A limit refuses next to nothing once the pace is under it, a busy API goes on refusing the same share. So
    where slowing down again and again has not helped, the pace is given back, that share is forgiven, and
    only what exceeds it counts. A limit that was mistaken for it is found out at once, for it lets in no more
    than before, or soon after, when the share is measured anew at a lower pace.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.let_in = 0.0
        """Requests a second that were let in before the pace was given back."""
        self._verdicts: deque[tuple[int, float]] = deque(maxlen=_VERDICTS)
        self._since = (0, 0.0)
        self._forgiven = 0
        self._credit = 0.0
        self._sent = self._look_at = self._refused = 0

    @property
    def pace(self) -> float:
        """What to send of what could be sent: less than 1 while the share is measured."""
        return _LOWER if self.share and self._sent >= self._look_at else 1.0

    def sent(self, number: int) -> None:
        """A request leaves."""
        self._sent = number
        self._credit = min(_MOST_CREDIT, self._credit + _LEEWAY * self.share)
        if self.share and number >= self._look_at + _LOOK + _LATE:
            found = self._refused / _LOOK
            self.share = 0.0 if found < _GONE * self.share else min(_MOST, (self.share + found) / 2)
            self._look_at, self._refused = number + _LOOK_EVERY, 0

    def forgives(self, number: int) -> bool:
        """Whether the refusal of this request is one of those that come at any pace."""
        if self._look_at <= number < self._look_at + _LOOK:
            self._refused += 1
        if not self.share or self._credit < 1.0:
            return False
        self._credit -= 1.0
        self._forgiven += 1
        return True

    def slowed(self, number: int, now: float) -> bool:
        """A refusal was taken for a limit's; whether slowing down was in vain, and the pace is given back."""
        if self.share:
            self._credit = _MOST_CREDIT / 2  # for the slowdown to show
            return False
        if not self._verdicts or number - self._verdicts[-1][0] >= _APART:
            self._verdicts.append((number, now))
        first, began = self._verdicts[0]
        if len(self._verdicts) < _VERDICTS or number - first > _AMONG:
            return False
        self.share = min(_MOST, _VERDICTS / (number - first))
        self.let_in = (number - first - _VERDICTS) / (now - began)
        self._since, self._forgiven = (self._sent, now), 0
        self._credit = _MOST_CREDIT / 2
        self._look_at, self._refused = number + _FIRST_LOOK, 0
        self._verdicts.clear()
        return True

    def exposed(self, now: float) -> bool:
        """More is refused than the share: whether it was a limit all the while, for no more was let in."""
        if not self.share:
            return False
        first, began = self._since
        if self._sent - first - self._forgiven - _RESERVE > _MORE * self.let_in * (now - began):
            return False
        self.share = 0.0
        return True
