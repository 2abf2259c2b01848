"""What finishes a run by its deadline: cheap routes all the time, and dear ones for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

from imagemill.engine.route import Route

_SLACK = 0.01
"""How far a run may fall behind an even pace before a dearer route joins in, as a share of the images left;
twice as far before the next one, and so on. It shrinks with what is left, so the run ends in time."""

_CLEAR = 1.05
"""If the cheaper routes would not catch up at so many times their rate either, nobody waits for the slack."""

_LAST = 1.25
"""A route's last requests leave this many times its slowest image's time before the deadline."""

_RETRY_S = 5.0
"""A job that is refused is tried again after about so many seconds at most."""

_YOUNG_S = 6.0
"""A route that has worked for less, in seconds, may well become twice as fast: its limit is looked for."""


class Schedule:
    """How far a run should have come by now, and whether its cheaper routes get it there.

    The cheapest way to a deadline uses the cheaper routes to their limits all the time, and the dearer ones
    for the rest only. A dearer route joins in once the cheaper ones would clearly not finish in time, or
    would not and the run is behind an even pace. From then on it works to its limit too, until they can
    finish nearly all of the rest: what it has made too much is paid for, and what is missing it can make up
    for. A route that is used now and then shows no limit, and its rate would be guessed too low when the next
    one is judged.

    Args:
        deadline: when the run should be finished, by the clock; None: whenever the cheapest route is ready.
        left: how many jobs are not finished yet.
        clock: monotonic seconds.
    """

    def __init__(self, deadline: float | None, left: Callable[[], int], clock: Callable[[], float]) -> None:
        self._deadline = math.inf if deadline is None else deadline
        self._left = left
        self._clock = clock
        self._begun: tuple[float, int] | None = None
        self._helping: set[Route] = set()

    def unsent(self, routes: Iterable[Route]) -> int:
        """How many jobs are neither finished nor on their way."""
        return self._left() - sum(route.pacer.in_flight for route in routes)

    def needs_more(
        self,
        cheaper: Collection[Route],
        dearer: Route,
        step: int,
        routes: Iterable[Route],
        *,
        is_dearest: bool,
    ) -> bool:
        """Whether ``dearer`` should join these routes; ``step`` counts the higher prices, from 1.

        The dearest can make up for it later; what the others could have made until then, it makes.
        """
        if self._deadline == math.inf:
            return False
        now = self._clock()
        begun, jobs = self._begun = self._begun or (now, self._left())
        unsent = self.unsent(routes)
        likely = possible = 0.0
        for route in cheaper:
            made = self._left_s(route, now) * _per_s(route, now)
            likely += made
            possible += made * (2.0 if _is_young(route, now) else _CLEAR)
        left_s = max(self._left_s(route, now) for route in cheaper)
        behind = unsent - jobs * left_s / (left_s + now - begun) if left_s else unsent
        may_wait = is_dearest and any(_is_young(route, now) for route in cheaper)
        slack = step * _SLACK * unsent
        made_up_for = min(slack, self._left_s(dearer, now) * _per_s(dearer, now) / 2)
        if unsent - made_up_for <= likely:
            self._helping.discard(dearer)
        elif behind > slack or (unsent > possible and not may_wait):
            self._helping.add(dearer)
        return dearer in self._helping

    def in_time(self, routes: Sequence[Route], all_routes: Iterable[Route]) -> Sequence[Route]:
        """Those of the routes whose images come before the deadline; the late ones too where all are needed.

        None, once it is too late for all.
        """
        now = self._clock()
        early = [route for route in routes if self._left_s(route, now)]
        made = sum((self._deadline - now - each.throughput.latency_s) * _per_s(each, now) for each in early)
        return routes if early and made < self.unsent(all_routes) else early

    def is_nearly_over(self, route: Route) -> bool:
        """Whether a job that the route refuses now would come after the deadline."""
        now = self._clock()
        return now < self._deadline and self._left_s(route, now) <= _RETRY_S

    def _left_s(self, route: Route, now: float) -> float:
        """The seconds in which the route may send requests whose images come in time."""
        return max(0.0, self._deadline - now - _LAST * route.throughput.slowest_s)


def _per_s(route: Route, now: float) -> float:
    return route.throughput.per_s(now) or route.api.first_per_s


def _is_young(route: Route, now: float) -> bool:
    return route.throughput.age_s(now) < _YOUNG_S
