"""The routes of a run, and which of them takes the next job.

With one route, a job waits for that route's breaker and pacer, first come, first served. With several, all
jobs wait in one queue: whenever a route has room, the first job that may go there does. So every route is
kept at its own limit, and one that is down or closed holds nobody up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import anyio

from imagemill.engine.breaker import OutageError
from imagemill.engine.limits.pacer import Slot, StoppedError
from imagemill.engine.route import Route
from imagemill.engine.schedule import Schedule
from imagemill.engine.work import Work
from imagemill.jobs import Job

Policy: TypeAlias = Literal["fastest", "cheapest", "failover"]

_NOTHING_USD = 1e-9


class NoRouteError(Exception):
    """No route is left that the job may take."""


class RouteDownError(Exception):
    """The route that has the job's request is down, and others are not: the request is asked about later."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A job that waits for a route; ``turn`` is what it was given.

    Jobs of one ``kind`` may take the same routes, as of now; None for a job that is like no other.
    """

    work: Work
    kind: Hashable
    turn: tuple[Route, Slot] | None = None
    woken: anyio.Event = field(default_factory=anyio.Event)


class Routes:
    """The routes of a run in one process.

    Args:
        routes: in the order in which the run names them.
        policy: ``fastest`` keeps every route at its limit; ``cheapest`` takes a dearer one only where the
            cheaper ones are closed, down, or too slow for the deadline; ``failover`` takes the first that is
            neither closed nor down.
        deadline: when the run should be finished, by the clock.
        left: how many jobs are not finished yet.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        policy: Policy = "fastest",
        *,
        deadline: float | None = None,
        left: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._routes = tuple(routes)
        self._named = {route.name: route for route in routes}
        self._policy = policy
        self._clock = clock
        self._schedule = Schedule(deadline, left, clock)
        self._waiting: list[_Waiting] = []
        self._stopped = self._matching = False
        self._wakes_at = -math.inf
        self.on_spent: Callable[[Route], None] = lambda _: None
        """Called where the next image does not fit into a route's part of the budget."""
        self.are_several = len(self._routes) > 1
        self.parks = self.are_several
        """Whether jobs whose requests are at a route that is down leave, and are asked about later."""
        self.negative_prompts = any(route.api.profile.uses_negative_prompt for route in routes)
        """Whether a negative prompt is part of the pictures' keys."""
        for route in self._routes:
            route.pacer.unsent = partial(self._worth_a_look, route)
            if self.are_several:
                route.pacer.on_change = route.setup.on_change = self._match

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    @property
    def first(self) -> Route:
        """The route of a run that has only one."""
        return self._routes[0]

    def unsent(self) -> int:
        """How many jobs are neither finished nor on their way."""
        return self._schedule.unsent(self._routes)

    def _worth_a_look(self, route: Route) -> int:
        """How many jobs a higher limit of the route is worth looking for.

        None shortly before the deadline: the look's own job, if it is refused, would come late.
        """
        return 0 if self._schedule.is_nearly_over(route) else self.unsent()

    @property
    def open(self) -> list[Route]:
        """The routes that take jobs."""
        return [route for route in self._routes if route.closed is None]

    def of(self, job: Job) -> Route:
        """The route that the job's latest request took; the first, if it took none."""
        return self._named.get(job.route, self._routes[0])

    def place(self, job: Job, route: Route) -> None:
        """The job's request is at this route: the picture is of its model."""
        if self.are_several:
            job.route, job.model = route.name, route.api.model

    def candidates(self, work: Work) -> list[Route]:
        """The routes that the job may take, now or later."""
        if work.job.request_id is not None:
            return [work.route] if work.route.can_be_asked else []
        if not self.are_several:
            return [self.first]
        return [
            route
            for route in self._routes
            if route.closed is None
            and route not in work.excluded
            and route.makes(work.job, negative_prompts=self.negative_prompts)
        ]

    def is_free(self, job: Job) -> bool:
        """Whether any route may take the job, so that the first that has room does."""
        open_ = self.open
        free = job.request_id is None
        return free and all(r.makes(job, negative_prompts=self.negative_prompts) for r in open_)

    def waiting(self) -> dict[int, None]:
        """The jobs that wait for one of several routes, to send a request: their numbers."""
        return dict.fromkeys(w.work.job.number for w in self._waiting if w.work.job.request_id is None)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        for route in self._routes:
            route.wake()
            route.pacer.stop()
        self.look_again()

    def look_again(self) -> None:
        """Something has changed: whoever waits may have to wait no more."""
        for route in self._routes:
            route.pacer.look_again()
        for waiting in self._waiting:
            waiting.woken.set()

    async def turn(self, work: Work, stopping: anyio.Event) -> tuple[Route, Slot]:
        """Wait until a route may send the job's request; the pacer gets the slot back by its ``release``.

        Raises:
            StoppedError: the run is stopping.
            OutageError: all that the job may take have been down for too long.
            NoRouteError: none is left that it may take.
            RouteDownError: its request is at a route that is down.
        """
        if not self.are_several:
            await self.first.breaker.admit(stopping)
            return self.first, await self.first.pacer.acquire()
        routes = self.candidates(work)
        if routes and all(route.breaker.has_given_up for route in routes):
            # Or a job whose attempts take longer than the pause between two probes would probe for ever.
            raise RouteDownError if self.parks and work.job.request_id is not None else OutageError
        waiting = _Waiting(work, self._kind_of(work))
        self._waiting.append(waiting)
        try:
            while True:
                self._match()
                if waiting.turn is not None:
                    turn, waiting.turn = waiting.turn, None
                    return turn
                wait_s = self._wait_s(waiting)
                waiting.woken = anyio.Event()
                with anyio.move_on_after(wait_s if wait_s < math.inf else None):
                    await waiting.woken.wait()
        finally:
            if waiting.turn is not None:  # given, and cancelled before it could be taken
                route, slot = waiting.turn
                route.pacer.release(slot)
            was_first = self._waiting[0] is waiting
            self._waiting.remove(waiting)
            if was_first and self._waiting:
                self._waiting[0].woken.set()  # the first keeps the time for all

    def _wait_s(self, waiting: _Waiting) -> float:
        """How long a job sleeps at most before it looks again."""
        if self._stopped:
            raise StoppedError
        routes = self.candidates(waiting.work)
        if not routes:
            raise NoRouteError
        if self.parks and waiting.work.job.request_id is not None and routes[0].is_down:
            raise RouteDownError
        if all(route.breaker.has_given_up for route in routes):
            raise OutageError
        now = self._clock()
        waits = [waiting.work.not_before.get(route, 0.0) - now for route in routes]
        is_first = self._waiting[0] is waiting
        if is_first:
            waits += [_wait_s(route) for route in self._routes]
            waits.append(1.0)  # a deadline comes nearer, patience ends
        wait_s = min((wait_s for wait_s in waits if wait_s > 0), default=math.inf)
        if is_first:
            self._wakes_at = now + wait_s
        return wait_s

    def _match(self) -> None:
        """Give the routes that have room to the jobs that wait, first come, first served."""
        if self._matching or self._stopped or not self._waiting:
            return
        self._matching = True
        try:
            full = {route for route in self._routes if not route.can_be_asked or _wait_s(route) > 0}
            left_out: set[Hashable] = set()  # thousands may wait, and all of a kind wait for the same
            for waiting in self._waiting:
                if len(full) == len(self._routes):
                    break
                if waiting.turn is not None or waiting.kind in left_out:
                    continue
                if (route := self._route_for(waiting.work, full)) is not None:
                    waiting.turn = route, route.pacer.take()
                    route.breaker.sent()
                    route.throughput.sent(self._clock())
                    waiting.woken.set()
                elif waiting.kind is not None:
                    left_out.add(waiting.kind)
        finally:
            self._matching = False
        if self._clock() + min(map(_wait_s, full), default=math.inf) < self._wakes_at:
            self._waiting[0].woken.set()  # a route has room sooner than the first waits

    def _kind_of(self, work: Work) -> Hashable:
        """What decides which routes a job may take."""
        job, now = work.job, self._clock()
        if any(at > now for at in work.not_before.values()):
            return None
        if job.request_id is not None:
            return work.route
        large = tuple(job.seed > route.api.largest_seed for route in self._routes)
        negative = job.negative_prompt is not None
        made = (job.width, job.height, job.steps, job.format, job.params, large, negative)
        return (*made, frozenset(work.excluded), frozenset(work.let_down))

    def _route_for(self, work: Work, full: set[Route]) -> Route | None:
        """The route that the job takes now; ``full`` collects those without room."""
        now = self._clock()
        for route in self._preferred(work):
            if route in full or work.not_before.get(route, -math.inf) > now:
                continue
            if _wait_s(route) > 0:
                full.add(route)
                continue
            share = route.share
            if work.job.request_id is None and share is not None and not share.fits(route.price(work.job)):
                # The route has room all the same for a request that it has: what that costs is set aside.
                if share.promised_usd < _NOTHING_USD:  # nothing that comes back makes room
                    self.on_spent(route)
                continue
            work.go(route)
            return route
        return None

    def _preferred(self, work: Work) -> list[Route]:
        """The routes that the job may take now, by the policy, the best first."""
        routes = self.candidates(work)
        if len(routes) < 2:
            return routes
        up = [route for route in routes if not route.is_down]
        if not up:
            return routes
        probed = [route for route in routes if route.is_down and route not in work.let_down]
        if self.unsent() <= sum(route.pacer.concurrency for route in up):
            probed = []  # the others make what is left at once: nothing is gained by a route that comes back
        if self._policy == "failover":
            return [*probed, up[0]]
        if self._policy == "cheapest" and (in_time := self._schedule.in_time(up, self._routes)):
            return [*probed, *self._cheap_enough(work, in_time)]
        quick = [route for route in up if not self._comes_late(route, up)]
        return [*probed, *sorted(quick, key=lambda route: route.price(work.job))]

    def _comes_late(self, route: Route, routes: list[Route]) -> bool:
        """Whether the others have made all that is left before this one would have made its next image.

        So the last images are not waited for at a slow route while the fast ones have nothing left to do.
        """
        made, latency_s = 0.0, route.throughput.latency_s
        for other in routes:
            ahead_s = latency_s - other.throughput.latency_s
            if ahead_s > 0 and other.throughput.latency_s:
                wait_s = _wait_s(other)
                ahead_s -= wait_s if wait_s < math.inf else 0.0
                made += max(0.0, ahead_s) * other.throughput.per_s(self._clock())
        return made > 0 and made >= self.unsent()

    def _cheap_enough(self, work: Work, routes: Sequence[Route]) -> list[Route]:
        """The cheapest routes, and so many of the next as the deadline takes."""
        chosen: list[Route] = []
        step = 0
        in_turn = sorted(routes, key=lambda route: route.price(work.job))
        dearest_usd = in_turn[-1].price(work.job)
        for route in in_turn:
            usd = route.price(work.job)
            if chosen and usd > chosen[-1].price(work.job):
                step += 1
                dearest = usd == dearest_usd
                if not self._schedule.needs_more(chosen, route, step, self._routes, is_dearest=dearest):
                    break
            chosen.append(route)
        return chosen


def _wait_s(route: Route) -> float:
    """Seconds until a route has room: 0 now, infinite until a request comes back."""
    wait_s = route.breaker.wait_s()
    return math.inf if route.setup.is_in_doubt else max(wait_s, route.pacer.wait_s())
