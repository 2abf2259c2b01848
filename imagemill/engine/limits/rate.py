"""How many requests an account takes in a stretch of time: found from which of the paced ones it refused."""

from __future__ import annotations

import math
from collections import deque

START_PER_S = 20.0
"""The first pace, in requests a second: the first ten leave within the time of one image, not at once, for
a token bucket with room for one would refuse nine of them."""

_RAMP_DOUBLING_S = 0.6
_PROBE_DOUBLING_S = 4.0
_CREEP = 5e-5
"""Growth with each request while the limit holds."""
_LEAST_CUT, _MOST_CUT = 0.01, 0.15
_FIRST_CUT = 0.8
_DOUBT = 0.6
_FALL = 0.7
_AFTER_PROBE = 0.995
"""What a probe that was refused leaves of the pace before it: as much as it has crept up since the last."""
_QUIET_REQUESTS = 250
_SOON_REQUESTS = 40
"""Requests until the next probe, and those that prove a pace, while the limit is still being searched."""
_LEAST_SOON_S = 0.8
_MOST_SOON_S = 3.0
_SOON_DOUBLING_S = 1.5
_LIKELY_BURST = 15.0
_FARTHEST = 2.0
"""A pace so many times what is sent has no effect: it grows no more."""
_WORTH = 1.05
_MOST_PATIENCE = 16
_LEAST_QUIET_S = 5.0
_MOST_QUIET_S = 24.0
"""A probe costs about one refusal: at 5 requests a second, one in 24 s is 0.8 % of them."""
_MARKS = 12
_FEWEST = 8
_DENSE = 0.08
"""Refusals for each request let in from which on the pace was certainly above the limit, so that the bucket
was never full and nothing that flowed into it was lost."""
_STRETCH = 8
"""Requests let in over which it is judged whether slowing down has helped."""
_CALM_REQUESTS = 40
"""So many in a row that are let in prove that slowing down has helped."""
_KEPT = 0.6
_RAISED = 1.5


class RateSearch:
    """The pace of requests; a pure object that is told what was sent and what was refused.

    While no limit on the rate was seen (``bound`` is False), the pace doubles every 0.6 s that it holds
    anything back. A token bucket that refuses a request is empty; what it lets through between two
    refusals is therefore what flows into it, give or take one request. So every pair of refusals bounds the
    limit. Between refusals the pace creeps up, and after a quiet time it probes, as TCP CUBIC does: ever
    faster, and back to what held where that is refused. A limit lets the same number through however much
    faster one asks. Where fewer and fewer come through just because fewer are sent, the refusals are about
    something else, such as an API with too much to do, and the pace is what it was before them.
    """

    def __init__(self, per_s: float = START_PER_S, *, known: bool = False) -> None:
        self.per_s = per_s
        self.bound = known
        self._ramp_s = _RAMP_DOUBLING_S
        self._sent = 0
        self._marks: deque[tuple[int, float, int]] = deque(maxlen=_MARKS)
        self._second_began = 0.0
        self._this_second = 0
        self._last_second = 0.0
        self._latest = 0.0
        self._refusals = 0
        self._cut_at = -math.inf
        self._cut_number = -_FEWEST
        self._searching = False
        self._doubling_s = _PROBE_DOUBLING_S
        self._held = per_s
        self._probe: tuple[int, float] | None = None
        self._trial: tuple[int, float] | None = None
        self._patience = 1
        self._untried = 0
        self._stretch = (0, 0.0, 0)
        self._last_refused = 0
        self._let_in = self._let_in_at = 0.0
        self._pace_first = per_s

    def sent(self, now: float, *, paced: bool) -> int:
        """A request leaves; ``paced`` says that the pace held it back. Its number."""
        self._sent += 1
        if now - self._second_began >= 1.0:
            self._last_second = self._this_second / (now - self._second_began)
            self._this_second, self._second_began = 0, now
        self._this_second += 1
        self._latest = now
        if paced:
            if not self.bound:
                self.per_s *= 2.0 ** (1.0 / (self._ramp_s * self.per_s))
            elif self._probe is None and now - self._cut_at < self._quiet_s():
                self.per_s *= 1.0 + _CREEP
            else:
                if self._probe is None:
                    self._probe = (self._sent, now)
                    self._held = self.per_s
                    self._trial = None
                    self._doubling_s = _SOON_DOUBLING_S if self._searching else _PROBE_DOUBLING_S
                if self.per_s < _FARTHEST * self._measured(now):
                    self.per_s *= 2.0 ** (1.0 / (self._doubling_s * self.per_s))
        return self._sent

    @property
    def probing(self) -> bool:
        """Whether the pace is above what is known to hold."""
        return self._probe is not None

    @property
    def holds_back(self) -> bool:
        """Whether the pace is near what is sent, or far above it and without effect."""
        return self.per_s < (1.4 if self.bound else 2.0) * self._measured(self._latest)

    def told(self, per_s: float) -> None:
        """The API's headers imply this limit: go on from there, and probe as at any other that holds."""
        self.restored(per_s, bound=True)
        self._held = per_s
        self._searching = False
        self._cut_at = self._latest

    def doubted(self) -> None:
        """A refusal that may be about the rate: slow down, and grow more carefully."""
        self.per_s = min(self.per_s, max(_DOUBT * self.per_s, self._measured(self._latest)))
        self._ramp_s = 4.0 * _RAMP_DOUBLING_S

    def refused(self, number: int, sent_at: float, now: float) -> None:
        """The request of this number, sent at this time, was too soon."""
        late = sent_at <= self._cut_at
        self._refusals += 1
        if not self.bound:
            self.bound = True
            if not self.holds_back:
                self.per_s = max(self._measured(now), 0.75 * self.per_s)
            self._forget_stretches(number, sent_at)
            self.per_s *= _FIRST_CUT
            self._searching = True
        elif self._is_in_vain(number, sent_at):
            self.restored(_RAISED * self._pace_first, bound=True)
            self._forget_stretches(number, sent_at)
        elif late:
            pass
        elif self._probe is not None:
            self._end_probe(*self._probe, now)
        elif self._trial is not None and number - self._trial[0] < _SOON_REQUESTS:
            self.per_s = self._trial[1] * _AFTER_PROBE
            self._trial = None
            self._searching = False
        else:
            # One refused of so many is one more than flowed into the bucket meanwhile.
            excess = 1.0 / max(1, number - self._cut_number)
            self.per_s *= 1.0 - min(max(excess, _LEAST_CUT), _MOST_CUT)
        self._marks.append((number, sent_at, self._refusals))
        if not late:
            self._cut_at, self._cut_number = now, self._sent
        self._narrow()

    def restored(self, per_s: float, bound: bool) -> None:  # noqa: FBT001 - both as they were
        """What was thought of the rate lately was wrong."""
        self.per_s, self.bound = per_s, bound
        self._ramp_s = _RAMP_DOUBLING_S
        self._probe = self._trial = None
        self._marks.clear()

    def fallen(self, now: float) -> None:
        """Refusal upon refusal, whatever the reason: slow down."""
        self.per_s *= _FALL
        self._probe = self._trial = None
        self._cut_at = now
        self._searching = True
        self._marks.clear()

    def _forget_stretches(self, number: int, at: float) -> None:
        self._stretch = (number, at, self._refusals)
        self._let_in = self._let_in_at = 0.0
        self._pace_first = self.per_s

    def _is_in_vain(self, number: int, at: float) -> bool:
        """Whether as large a share is refused as before, though the pace has fallen."""
        if number - self._last_refused > _CALM_REQUESTS:
            self._forget_stretches(number, at)
        self._last_refused = number
        first, began, before = self._stretch
        accepted = number - first - (self._refusals - before)
        if accepted < _STRETCH or at <= began:
            return False
        self._stretch = (number, at, self._refusals)
        let_in = accepted / (at - began)
        if not self._let_in:
            self._let_in, self._let_in_at = let_in, self.per_s
        return let_in < _KEPT * self._let_in and self.per_s < _KEPT * self._let_in_at

    def _end_probe(self, first: int, began: float, now: float) -> None:
        """The pace of a probe was refused: back to what held, or half way where more was let in."""
        self._probe = None
        excess = self._sent - first - self._held * (now - began)
        risen = excess > _LIKELY_BURST
        apart = self.per_s > _WORTH * self._held
        self._untried += 1
        if risen or (apart and (self._searching or self._untried >= self._patience)):
            # The limit lies between what held and what was refused: half way, unless a bucket's reserve
            # had only hidden that nothing has changed. Then the next refusal follows at once.
            self._patience = 1 if risen else min(2 * self._patience, _MOST_PATIENCE)
            self._untried = 0
            self._trial = None if risen else (self._sent, self._held)
            self.per_s = self._held + (0.75 if risen else 0.5) * (self.per_s - self._held)
            self._searching = True
            self._marks.clear()
        else:
            self.per_s = self._held * _AFTER_PROBE
            self._searching = False

    def _narrow(self) -> None:
        """Keep the pace between the bounds that pairs of refusals give."""
        number, at, refusals = self._marks[-1]
        lowest, highest = 0.0, math.inf
        for other, then, before in reversed(list(self._marks)[:-1]):
            accepted = number - other - (refusals - before)
            if at - then <= 0 or accepted < _FEWEST:
                continue
            low, high = (accepted - 1) / (at - then), math.inf
            if refusals - before >= _DENSE * accepted:
                high = (accepted + 1) / (at - then)
            if low > highest or high < lowest:
                # The limit is not what it was: forget what was measured before.
                while self._marks[0][0] <= other:
                    self._marks.popleft()
                break
            lowest, highest = max(lowest, low), min(highest, high)
        self.per_s = max(min(self.per_s, highest), lowest * (1.0 - _LEAST_CUT), 0.05)

    def _measured(self, now: float) -> float:
        """Requests sent a second, of late."""
        elapsed = max(now - self._second_began, 0.3)
        return max(self._last_second, self._this_second / elapsed)

    def _quiet_s(self) -> float:
        if self._searching:
            return min(_MOST_SOON_S, max(_LEAST_SOON_S, _SOON_REQUESTS / self.per_s))
        return min(_MOST_QUIET_S, max(_LEAST_QUIET_S, _QUIET_REQUESTS / self.per_s))
