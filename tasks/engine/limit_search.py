"""Finds an account's limit, of whichever kind: so many requests at once, so many a minute, or both."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tasks.engine.rate import START_PER_S, RateSearch
from tasks.engine.window import START, WindowSearch

_LEVELS_S = 5.0
_LEVELS_KEPT = 4
"""How many in flight were let in is remembered over four times five seconds."""

_STORM = 3
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What an account takes: requests at once, and images a minute (None: no limit on the rate seen)."""

    concurrency: int
    per_minute: float | None = None


@dataclass(slots=True)
class Sent:
    """A request as it left: how many were in flight with it, and whether the pace had held it back."""

    number: int
    at: float
    in_flight: int
    paced: bool
    round: int
    refused: bool = False


class LimitSearch:
    """Two searches, for requests in flight and for their rate, and the verdict which one a 429 is about.

    A limit on requests in flight never refuses fewer than it lately let in, so such a refusal is about the
    rate; and a limit on the rate never refuses everything, so refusal upon refusal is about the number.
    """

    def __init__(self, known: Limit | None = None) -> None:
        rate = known.per_minute / 60.0 if known and known.per_minute else None
        self.window = WindowSearch(known.concurrency if known else START, known=known is not None)
        self.rate = RateSearch(rate or START_PER_S, known=rate is not None)
        self._levels: deque[list[float]] = deque(maxlen=_LEVELS_KEPT)
        self._open: deque[Sent] = deque(maxlen=4096)
        self._round = 0
        self._streak = 0
        self._pace_before: float | None = None
        self._beyond = 0
        self._about_number = False
        self._refusal_s = 0.0

    def sent(self, in_flight: int, now: float, *, paced: bool) -> Sent:
        """A request leaves; ``in_flight`` counts it."""
        sent = Sent(self.rate.sent(now, paced=paced), now, in_flight, paced, self._round)
        self._open.append(sent)
        return sent

    def admitted(self, sent: Sent, now: float) -> None:
        """The request was let in."""
        self._settle(now)
        if sent.round == self._round:
            self._streak = 0
            self.window.admitted(sent.in_flight, now)

    def refused(self, sent: Sent, now: float) -> float:
        """The request came back with a 429. Seconds that everybody should pause."""
        sent.refused = True
        took_s = now - sent.at
        self._refusal_s = max(took_s, self._refusal_s + 0.1 * (took_s - self._refusal_s))
        for later in self._open:
            if later.number > sent.number:
                later.in_flight -= 1  # it counted this one, which the account never had
        self._settle(now)
        if sent.round != self._round:
            # Sent before everybody slowed down for another one: it only sharpens that verdict.
            if self._about_number:
                self.window.refused(sent.in_flight, now)
            elif self.rate.bound:
                self.rate.refused(sent.number, sent.at, now)
            return 0.0
        self._round += 1
        self._streak += 1
        self._about_number = False
        if self._streak == 1:
            self._pace_before = None if self.rate.holds_back else self.rate.per_s
        if self._streak >= _STORM:
            return self._storm(sent, now)
        highest = max((level for _, level in self._levels), default=0)
        if sent.in_flight > highest:
            return self._beyond_all(sent, now)
        self._beyond = 0
        if not self.rate.bound:
            self.window.resume()
        self.rate.refused(sent.number, sent.at, now)
        pause_s = 1.0 / self.rate.per_s
        return pause_s if self._streak == 1 else max(pause_s, self._refusal_s)

    def _storm(self, sent: Sent, now: float) -> float:
        """Refusal upon refusal, and nothing let in between: fewer at once, after ever longer pauses."""
        self._levels.clear()
        self._open.clear()
        self.window.fallen(sent.in_flight, now)
        if self._pace_before is None:
            self.rate.fallen(now)
        else:
            self.rate.restored(self._pace_before)
        return min(_LONGEST_PAUSE_S, 0.1 * 2.0 ** (self._streak - _STORM))

    def _beyond_all(self, sent: Sent, now: float) -> float:
        """A refusal at more in flight than were ever let in: about the number, or else about the rate."""
        self._beyond += 1
        paced = sent.paced and (self.rate.holds_back or sent.in_flight <= START)
        probed = self.window.probing and sent.in_flight >= self.window.limit
        if self.rate.bound and paced and self._beyond == 1 and not probed:
            self.rate.refused(sent.number, sent.at, now)
            return 1.0 / self.rate.per_s
        self._beyond = 0
        self._about_number = True
        self.window.refused(sent.in_flight, now)
        if not paced and not self.rate.holds_back:
            self.rate.freed()
        elif not self.rate.bound:
            self.rate.doubted()
        return 0.0 if probed else self._refusal_s

    def _settle(self, now: float) -> None:
        """Count those as let in whose refusal would be here by now."""
        until = now - max(0.15, 1.5 * self._refusal_s)
        while self._open and self._open[0].at < until:
            sent = self._open.popleft()
            if sent.refused:
                continue
            if sent.round == self._round:
                self._streak = 0
            if not self._levels or sent.at - self._levels[-1][0] > _LEVELS_S:
                self._levels.append([sent.at, sent.in_flight])
            else:
                self._levels[-1][1] = max(self._levels[-1][1], sent.in_flight)

    def learned(self) -> Limit:
        """What was found so far."""
        per_minute = round(60.0 * self.rate.per_s, 1) if self.rate.bound else None
        return Limit(self.window.limit, per_minute)
