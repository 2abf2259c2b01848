"""How many requests an account takes per second: found from which of the paced ones it refused."""

from __future__ import annotations

import math
from collections import deque
from itertools import islice, pairwise

START_PER_S = 20.0
"""The first pace, in requests per second: the first ten leave within the time of one image, not at once, for
a token bucket with room for one would refuse nine of them."""

_RAMP_DOUBLING_S, _RAMP_REQUESTS = 0.6, 4
"""The pace doubles in so many seconds, and not in fewer requests, until something is refused."""
_CREEP = 2.5e-5
"""Growth with each request just after a refusal."""
_CUBE = 65.0
"""After so many requests without a refusal the growth has doubled; it goes on with their third power."""
_FIRST_QUIET = 200.0
"""After the first refusal, which only says where the limit is about, the pace grows as if after so many."""
_LONGEST_QUIET_S = 0.5
"""A second without a refusal counts like a request, but no wait for more than this: at one request in two
seconds the pace would outgrow the limit every seventy."""
_FALL = 0.8
"""What the first refusal leaves of the pace."""
_STORM_FALL = 0.5
_LEAST_PER_S = 1 / 60
"""No refusal slows down any further, in requests per second: or an account that refuses everything would be
asked ever more rarely, and its jobs never fail."""
_RECENT = 12
"""Requests over which the pace of late is taken."""
_LEAST_CUT, _MOST_CUT = 0.01, 0.15

_KEPT, _ENOUGH = 200, 60
"""Requests whose times are kept, and those it takes to tell a burst."""
_DENSEST = 0.02
"""The share of them that left in the densest bursts."""
_DRAIN = 1.25
"""How dense is what a queue would hold that drains at so many times the mean pace."""
_PAUSE = 20.0
"""A gap so many times the usual one is a pause."""
_BURST_FALL = 0.7
_BURST_ROOM = 1.4
"""What paces bursts stays at so many times the mean, or it would slow down what is no burst."""


class RateSearch:
    """The pace of requests; a pure object that is told what was sent and what was refused.

    While no limit on the rate was seen (``bound`` is False), the pace doubles every 0.6 s that it holds
    anything back. Then it grows as TCP CUBIC does: hardly at first, and ever faster the longer nothing is
    refused. A refusal takes back as much as was sent too much.
    """

    def __init__(self, per_s: float = START_PER_S, *, known: bool = False) -> None:
        self.per_s = per_s
        self.bound = known
        self._doubling_s = _RAMP_DOUBLING_S
        self._sent = 0
        self._sent_at: deque[float] = deque(maxlen=_KEPT)
        self._second_began = 0.0
        self._this_second = 0
        self._last_second = 0.0
        self.most_per_s = 0.0
        """The most requests sent in a second, those that were refused included."""
        self.latest = 0.0
        """When the latest request left."""
        self._cut_at = -math.inf
        self._cut_number = 0
        self._quiet = 0.0

    def sent(self, now: float, *, paced: bool) -> int:
        """A request leaves; ``paced`` says that the pace held it back. Its number."""
        self._sent += 1
        if self._sent_at and now - self.latest > _PAUSE * self._usual_gap_s > 0.0:
            self._sent_at.clear()  # before a pause, the pace was another one
        self._sent_at.append(now)
        if now - self._second_began >= 1.0:
            self._last_second = self._this_second / (now - self._second_began)
            self.most_per_s = max(self.most_per_s, self._last_second)
            self._this_second, self._second_began = 0, now
        self._this_second += 1
        waited_s, self.latest = now - self.latest, now
        if not paced:
            return self._sent
        if not self.bound:
            self.per_s *= 2.0 ** (1.0 / max(self._doubling_s * self.per_s, _RAMP_REQUESTS))
        else:
            self._quiet += 1.0 + min(waited_s, _LONGEST_QUIET_S)
            self.per_s *= 1.0 + _CREEP * (1.0 + (self._quiet / _CUBE) ** 3)
        return self._sent

    @property
    def holds_back(self) -> bool:
        """Whether the pace is near what is sent, or far above it and without effect."""
        return self.per_s < (1.4 if self.bound else 2.0) * self._measured(self.latest)

    @property
    def recent_per_s(self) -> float:
        """Requests per second, over the last few of them."""
        recent = min(_RECENT, len(self._sent_at))
        span_s = self.latest - self._sent_at[-recent] if recent else 0.0
        return (recent - 1) / span_s if span_s else self.per_s

    @property
    def _usual_gap_s(self) -> float:
        """Seconds from one request to the next, on the average of those whose times are kept."""
        return (self._sent_at[-1] - self._sent_at[0]) / max(1, len(self._sent_at) - 1)

    def was_burst(self, number: int) -> bool:
        """Whether the request of this number left in one of the densest bursts of late."""
        until = len(self._sent_at) - (self._sent - number)
        if until < _ENOUGH or not self._usual_gap_s:
            return False
        one_drains_s = self._usual_gap_s / _DRAIN
        backlog, backlogs = 0.0, []
        for before, at in pairwise(islice(self._sent_at, until)):
            backlog = max(0.0, backlog - (at - before) / one_drains_s) + 1.0
            backlogs.append(backlog)
        return sum(each >= backlog for each in backlogs) <= _DENSEST * len(backlogs)

    def burst_refused(self, sent_at: float, now: float) -> None:
        """Requests left too close together, though not too many over a longer time: space them."""
        if self.bound and sent_at <= self._cut_at:
            return
        self.bound = True
        self.per_s = min(self.per_s, max(_BURST_ROOM / self._usual_gap_s, _BURST_FALL * self.per_s))
        self._cut_at, self._cut_number = now, self._sent
        self._quiet = 0.0

    def doubted(self) -> None:
        """A refusal that may be about the rate: slow down, and grow more carefully."""
        self.per_s = min(self.per_s, max(_FALL * self.per_s, self._measured(self.latest)))
        self._doubling_s = 4.0 * _RAMP_DOUBLING_S

    def refused(self, number: int, sent_at: float, now: float) -> None:
        """The request of this number, sent at this time, was too soon."""
        if not self.bound:
            self.bound = True
            if not self.holds_back:
                self.per_s = max(self._measured(now), 0.75 * self.per_s)
            self.per_s *= _FALL
            self._cut_at, self._cut_number = now, self._sent
            self._quiet = _FIRST_QUIET
            return
        if sent_at <= self._cut_at:
            return  # sent before the pace was cut for another one
        # One refused of so many is one more than flowed into the bucket meanwhile.
        excess = 1.0 / max(1, number - self._cut_number)
        self._cut(1.0 - min(max(excess, _LEAST_CUT), _MOST_CUT))
        self._cut_at, self._cut_number = now, self._sent
        self._quiet = 0.0

    def restored(self, per_s: float, bound: bool) -> None:  # noqa: FBT001 - both as they were
        """What was thought of the rate lately was wrong."""
        self.per_s, self.bound = per_s, bound
        self._doubling_s = _RAMP_DOUBLING_S

    def fallen(self, now: float) -> None:
        """Refusal upon refusal, whatever the reason: slow down."""
        self._cut(_STORM_FALL)
        self._cut_at = now
        self._quiet = 0.0

    def _cut(self, share: float) -> None:
        """Leave this share of the pace."""
        self.per_s = max(share * self.per_s, min(self.per_s, _LEAST_PER_S))

    def _measured(self, now: float) -> float:
        """Requests sent per second, of late."""
        elapsed = max(now - self._second_began, 0.3)
        return max(self._last_second, self._this_second / elapsed)
