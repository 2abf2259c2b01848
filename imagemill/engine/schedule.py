"""The even pace that finishes a run by its deadline: who is behind it may turn to dearer routes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable

from imagemill.engine.route import Route

_SLACK = 0.01
"""How far a run may fall behind its pace before a dearer route helps, as a share of the images left; twice as
far before the next dearer one, and so on. It shrinks with what is left, so that the end is in time."""

_LAST_S = 2.0
"""The last requests leave this many times the slowest image's time before the deadline."""


class Schedule:
    """How far a run should have come by now, and whether its cheaper routes get it there.

    The cheapest way to a deadline uses the cheaper routes to their limits all the time, and the dearer ones
    for the rest only. Dearer images are therefore spread evenly: bought early, on a guess at the cheaper
    routes' rate, each mistake would be paid for; bought late, a route that fails would cost the deadline.

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

    def unsent(self, routes: Iterable[Route]) -> int:
        """How many jobs are neither finished nor on their way."""
        return self._left() - sum(route.pacer.in_flight for route in routes)

    def needs_more(self, cheaper: Collection[Route], dearer: int, routes: Iterable[Route]) -> bool:
        """Whether routes that are dearer than these should help, ``dearer`` steps in price up."""
        if self._deadline == math.inf:
            return False
        now = self._clock()
        begun, jobs = self._begun = self._begun or (now, self._left())
        routes = list(routes)
        last_at = self._deadline - _LAST_S * max(route.lost.slowest_s for route in routes)
        left_s = last_at - now
        if left_s <= 0:
            return True
        unsent = self.unsent(routes)
        behind = unsent - jobs * left_s / (last_at - begun)
        if behind <= dearer * _SLACK * unsent:
            return False
        return unsent > left_s * sum(route.throughput.per_s(now) for route in cheaper)
