"""Finds an account's limit, of whichever kind: so many requests at once, so many a minute, or both."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from imagemill.engine.limits.busy import BusyShare
from imagemill.engine.limits.concurrency_search import CEILING, START, WindowSearch
from imagemill.engine.limits.rate_search import START_PER_S, RateSearch

_LEVELS_KEPT = 400
"""How many in flight were let in is remembered for so many requests."""

_SOON_REQUESTS = 25
_IN_VAIN = 2

_CROWD = 0.05
"""A limit on the rate refuses at any number in flight, one on the number only at the largest: as answers are
on their way for a while, it also lets in some with as many in flight, but this share of all at most."""
_CROWDED = 3
"""So many refusals in a row among the largest numbers are about the number."""

_NEW_AMONG = 60
"""More in flight than at any of so many requests before: that is reason enough."""

_LOOK_PACE = 1.25
"""While one request more at once is tried, requests leave at most at so many times their latest pace."""

_STORM = 3
_LONGEST_PAUSE_S = 2.0
_OUTAGE_S, _OUTAGE_REQUESTS = 10.0, 5
"""If nothing was let in for so long, and the time of so many requests, no limit was the reason: the account
refused everything for a while."""
_UNKNOWN_OUTAGE_S = 45.0
"""The same where the account's pace is not known yet: it may take one request in half a minute."""
_SERVED = 20
"""So many requests that were let in show that the pace was right before."""
_AGAIN_PER_S = 1.0
"""The least pace, in requests per second, at which the search for the limit begins again."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What an account takes: requests at once, and images a minute (None: no limit on the rate seen).

    ``took_per_s``: requests a second that it took where no limit on the rate was seen.
    """

    concurrency: int
    per_minute: float | None = None
    took_per_s: float | None = None


@dataclass(slots=True)
class Sent:
    """A request as it left: how many were in flight with it, and whether the pace had held it back.

    ``is_look``: it tried one more at once, well apart from those before it.
    """

    number: int
    at: float
    in_flight: int
    paced: bool
    round: int
    refused: bool = False
    is_look: bool = False


class LimitSearch:
    """Two searches, for requests in flight and for their rate, and the verdict which one a 429 is about.

    A limit on the number refuses when unusually many are in flight, a limit on the rate whenever it likes;
    where fewer in flight did not help, or unusually many had just left, it was the rate. A limit on the rate
    never refuses everything, so refusal upon refusal is about the number. What is refused at any pace is
    about neither. All of that is judged by ranks: what the client has in flight and what the account counts
    differ by what is on its way.
    """

    def __init__(
        self, known: Limit | None = None, first_per_s: float = START_PER_S, *, ceiling: int = CEILING
    ) -> None:
        rate = known.per_minute / 60.0 if known and known.per_minute else None
        if known and known.took_per_s:
            first_per_s = max(first_per_s, known.took_per_s)
        start = known.concurrency if known else START
        self.window = WindowSearch(start, ceiling, known=known is not None)
        self.rate = RateSearch(rate or first_per_s, known=rate is not None)
        self.busy = BusyShare()
        self._levels: deque[int] = deque(maxlen=_LEVELS_KEPT)
        self._open: deque[Sent] = deque(maxlen=4096)
        self._round = 0
        self._streak = 0
        self._pace_before: tuple[float, bool] | None = None
        self._fewer_in_vain = self._crowded = 0
        self._fewer_since = -_SOON_REQUESTS
        self._about_number = False
        self._refusal_s = 0.0
        self._has_served = False
        self._refused_since: float | None = None
        self._refusals = 0
        self._before_outage: tuple[float, bool] | None = None

    def sent(self, in_flight: int, now: float, *, paced: bool) -> Sent:
        """A request leaves; ``in_flight`` counts it."""
        number = self.rate.sent(now, paced=paced and self.busy.pace == 1.0 and not self._is_spaced)
        self.busy.sent(number)
        sent = Sent(number, now, in_flight, paced, self._round)
        if self._is_spaced and in_flight >= self.window.limit:
            sent.is_look, self.window.looks = True, False
        self._open.append(sent)
        return sent

    def admitted(self, sent: Sent, now: float, *, may_look: bool = True) -> None:
        """The request was let in; ``may_look``: one request more than what fits may be tried."""
        self._settle(now)
        if self._refused_since is not None and sent.at > self._refused_since:
            if self._refusals >= _STORM and sent.at - self._refused_since > self._outage_s:
                self._begin_again()
            self._refused_since, self._refusals = None, 0
        self._has_served = True
        if sent.round == self._round:
            self._streak = 0
            self.window.admitted(sent.in_flight, now, may_look=may_look)

    def refused(self, sent: Sent, now: float) -> float:
        """The request came back with a 429. Seconds that everybody should pause."""
        sent.refused = True
        took_s = now - sent.at
        self._refusal_s = max(took_s, self._refusal_s + 0.1 * (took_s - self._refusal_s))
        for later in self._open:
            if later.number > sent.number:
                later.in_flight -= 1  # it counted this one, which the account never had
        self._settle(now)
        if self.busy.forgives(sent.number):
            return 0.0
        if self.busy.exposed(now):
            self.rate.restored(self.busy.let_in, bound=True)
        return self._slow_down(sent, now)

    def _slow_down(self, sent: Sent, now: float) -> float:
        """A refusal is a limit's: find out which, and heed it. Seconds that everybody should pause."""
        if sent.round != self._round:
            # Sent before everybody slowed down for another one: it only sharpens that verdict.
            if self._about_number:
                self.window.refused(sent.in_flight, now)
            elif self.rate.bound:
                self.rate.refused(sent.number, sent.at, now)
            return 0.0
        self._round += 1
        self._count_refusal(now)
        if self._streak >= _STORM:
            return self._storm(sent, now)
        if self.busy.slowed(sent.number, now):
            self.window.resume()
            self.rate.restored(max(self.rate.per_s, START_PER_S), bound=False)
            return 0.0
        if self._is_burst(sent):
            self._fewer_in_vain = self._crowded = 0
            self.rate.burst_refused(sent.at, now)
        elif self._is_about_number(sent):
            return self._fewer(sent, now)
        else:
            if not self.rate.bound:
                self.window.resume()
            self.rate.refused(sent.number, sent.at, now)
        pause_s = 1.0 / self.rate.per_s
        return pause_s if self._streak == 1 else max(pause_s, self._refusal_s)

    @property
    def concurrency(self) -> int:
        """Requests at once, as of now."""
        return max(1, int(self.busy.pace * self.window.limit))

    @property
    def per_s(self) -> float:
        """Requests a second, as of now."""
        return self.busy.pace * self.rate.per_s

    def ready_at(self, in_flight: int) -> float:
        """When the next request may leave at the soonest, besides its pace; ``in_flight`` counts it."""
        is_look = self._is_spaced and in_flight >= self.window.limit
        return self.rate.latest + 1.0 / (_LOOK_PACE * self.rate.recent_per_s) if is_look else -math.inf

    @property
    def _is_spaced(self) -> bool:
        """Whether one more at once is about to be tried, and keeps apart from the one before.

        If it is refused, the number was the reason: sent right after another, it might exceed a rate as well.
        """
        return self.window.looks and not (self.rate.bound and self.rate.holds_back)

    def _is_burst(self, sent: Sent) -> bool:
        """Whether a 429 came because requests left all at once, though no more than usual were in flight."""
        is_usual = self._as_many(sent) > _CROWD * len(self._levels)
        return is_usual and not sent.is_look and self.rate.was_burst(sent.number)

    def _as_many(self, sent: Sent) -> int:
        """How many requests were let in with as many in flight, of late."""
        return sum(level >= sent.in_flight for level in self._levels)

    def _is_about_number(self, sent: Sent) -> bool:
        """Whether a 429 came because of the number in flight: there were unusually many."""
        if sent.in_flight == 1:
            return False
        if sent.is_look:
            return True
        as_many = self._as_many(sent)
        if sent.in_flight < self.window.limit and self._levels:
            if as_many > max(_CROWD * len(self._levels), 0 if self.rate.bound else 1):
                self._fewer_in_vain = self._crowded = 0
                return False
            # Among ten refusals for the rate one looks like this: the next one in a row hardly does.
            self._crowded += 1
            if self.rate.bound and self._crowded < (_CROWDED if as_many else _CROWDED - 1):
                return False
            if as_many:
                self.rate.restored(self.rate.per_s, bound=False)
        self._crowded = 0
        # With fewer in flight the next one would not have come so soon.
        is_new = as_many <= 1 and len(self._levels) >= _NEW_AMONG
        soon = sent.number - self._fewer_since < _SOON_REQUESTS and not is_new
        self._fewer_in_vain = self._fewer_in_vain + 1 if soon else 0
        self._fewer_since = sent.number
        return self._fewer_in_vain < (1 if self.rate.bound else _IN_VAIN)

    def _storm(self, sent: Sent, now: float) -> float:
        """Refusal upon refusal, and nothing let in between: fewer at once, after ever longer pauses."""
        self._levels.clear()
        self._open.clear()
        self.window.fallen(sent.in_flight, now)
        if self._pace_before is None or sent.in_flight == 1:
            self.rate.fallen(now)
        else:
            self.rate.restored(*self._pace_before)
        return min(_LONGEST_PAUSE_S, 0.1 * 2.0 ** (self._streak - _STORM))

    def _count_refusal(self, now: float) -> None:
        """One more refusal without a request let in between; at the first, note what was right before."""
        self._streak += 1
        self._refusals += 1
        self._about_number = False
        if self._streak == 1:
            self._pace_before = None if self.rate.holds_back else (self.rate.per_s, self.rate.bound)
        if self._refused_since is None:
            self._refused_since = now
            if len(self._levels) >= _SERVED:
                self._before_outage = (self.rate.per_s, self.rate.bound)

    @property
    def _outage_s(self) -> float:
        """For how long nothing is let in by an account that refuses everything; a slow one takes its time."""
        if self._before_outage:
            return max(_OUTAGE_S, _OUTAGE_REQUESTS / self._before_outage[0])
        return _UNKNOWN_OUTAGE_S if self._has_served else _OUTAGE_S

    def _begin_again(self) -> None:
        """The account takes requests again: go on as before, or look for its limit as at a new account."""
        self.window.resume()
        self.rate.restored(*(self._before_outage or (max(_AGAIN_PER_S, self.rate.per_s), False)))
        self._before_outage = None

    def _fewer(self, sent: Sent, now: float) -> float:
        """Let fewer in flight; slow down as well where the pace may have been the reason."""
        paced = sent.paced and not sent.is_look and (self.rate.holds_back or sent.in_flight <= START)
        probed = self.window.probing and sent.in_flight >= self.window.limit
        self._about_number = True
        self.window.refused(sent.in_flight, now)
        if paced and not self.rate.bound:
            self.rate.doubted()
        return 0.0 if probed else self._refusal_s

    def _settle(self, now: float) -> None:
        """Count those as let in whose refusal would be here by now."""
        until = now - max(0.05, 1.5 * self._refusal_s)
        while self._open and self._open[0].at < until:
            sent = self._open.popleft()
            if sent.refused:
                continue
            if sent.round == self._round:
                self._streak = 0
            self._levels.append(sent.in_flight)

    def learned(self) -> Limit:
        """What was found so far."""
        if not self.rate.bound:
            return Limit(self.window.limit, took_per_s=round(self.rate.most_per_s, 1) or None)
        # The number in force may be far from what the rate ever needed.
        most = max(self._levels, default=self.window.limit)
        return Limit(
            max(1, min(self.window.limit, most)),
            round(60.0 * min(self.rate.per_s, self.rate.most_per_s or math.inf), 1),
        )
