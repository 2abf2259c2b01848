"""Admits jobs to the routes: a request leaves once its price is set aside and a route has room for it.

A route that refuses the key, has no credit, or is set up wrongly is closed, and the others go on. The run
stops once none is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from imagemill.engine.breaker import OutageError
from imagemill.engine.cost_limit import BudgetSpentError, CostLimit
from imagemill.engine.earlier_requests import EarlierRequests
from imagemill.engine.limits.pacer import Slot, StoppedError
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import NoRouteError, RouteDownError, Routes
from imagemill.engine.stops import Stop, StopKind
from imagemill.engine.work import Work
from imagemill.errors import StoreUnavailableError
from imagemill.formatting import counted
from imagemill.jobs import Job
from imagemill.stores import JobStore

_DOES_NOT_SAY = (
    "{} does not answer whether it has requests of before, and sent again they could exceed the limit."
)


class Admission:
    """Lets the jobs of one process go, one request after another.

    ``stop`` stops the run, and has set ``stopping`` then. ``fence``, which may be set, is asked right before
    each purchase whether the job is still this process's.
    """

    def __init__(
        self,
        routes: Routes,
        earlier: EarlierRequests,
        cost: CostLimit,
        store: JobStore,
        recorder: Recorder,
        stopping: anyio.Event,
        stop: Callable[[StopKind, str], None],
    ) -> None:
        self._routes = routes
        self._earlier = earlier
        self._cost = cost
        self._store = store
        self._recorder = recorder
        self._stopping = stopping
        self._stop = stop
        self.expected: set[int] = set()
        """Jobs whose requests are sent, and which this process has yet to ask about."""
        self.parked: set[int] = set()
        """Those of them whose route is down: they are asked about at the end."""
        self.stranded: dict[int, Route | None] = {}
        """Jobs that no route is left for, with the one that still has their request, if any has."""
        self.perhaps_later: set[int] = set()
        """Those of them that may have one at the end: what was down may work, another may make them."""
        self.at_work = 0
        self.is_spent = False
        self.fence: Callable[[Job], Awaitable[bool]] | None = None
        routes.on_spent = self._close_spent

    async def admit(self, work: Work) -> Slot | None:
        """Wait until the job's request may be sent and paid for; None once the run or all its routes stop."""
        while True:
            try:
                await self._promise(work)
                slot = await self._slot(work)
            except BudgetSpentError:
                self.spend_no_more()
                return None
            except NoRouteError:
                self.strand(work.job, perhaps_later=bool(work.excluded))
            except OutageError:
                self._give_up(work)
            except RouteDownError:
                self._park(work)
            except StoppedError:
                pass
            except StoreUnavailableError as error:  # several processes share the limit through the store
                self._stop(StopKind.UNAVAILABLE, str(error))
            else:
                if slot is None:
                    work.purchase.leave()  # the next route may be dearer, and must fit under the limit
                    continue
                self.parked.discard(work.job.number)
                return slot
            work.purchase.leave()
            return None

    def is_in_question(self, work: Work) -> bool:
        """Whether the job's request may never have arrived, and would exceed a limit if it were sent now.

        An earlier process named it. Where it was refused or has failed, and the line that says so is lost,
        its money may be in others.
        """
        share = work.route.share
        is_named = work.purchase.is_expected and work.route.api.name_of(work.job) is not None
        return is_named and (self._cost.is_exceeded or (share is not None and share.is_exceeded))

    async def _ask_first(self, work: Work) -> None:
        """Find out whether the job's request arrived; if not, it is not sent as long as that exceeds a limit.

        Raises:
            BudgetSpentError: it exceeds the run's.
            NoRouteError: it exceeds its route's part, or that is closed.
            RouteDownError: its route does not say, and is asked at the end.
            StoppedError: the run is stopping.
        """
        if not work.route.can_be_asked:
            raise NoRouteError
        has_arrived = await self._earlier.has_arrived(work.route, work.job, self._stopping)
        if self._stopping.is_set():
            raise StoppedError
        if has_arrived or not self.is_in_question(work):
            return
        if has_arrived is None:
            if self._routes.parks:
                raise RouteDownError
            self._stop(StopKind.UNAVAILABLE, _DOES_NOT_SAY.format(work.route.api.base_url))
            raise StoppedError
        why = BudgetSpentError if self._cost.is_exceeded else NoRouteError
        work.purchase.free(work.route.share)
        if why is NoRouteError:
            self._close_spent(work.route)
        raise why

    async def _slot(self, work: Work) -> Slot | None:
        """A place at a route; None where the route closed while the job waited for it.

        Raises:
            StoppedError: the run is stopping, or the job is another process's.
        """
        route, slot = await self._routes.turn(work, self._stopping)
        may_send = False
        try:
            await route.setup.admit(work.job, route.closing)
            is_open = route.closed is None or work.job.request_id is not None
            may_send = is_open and await self._may_send(work)
        finally:
            if not may_send:
                route.setup.leave(work.job)
                route.pacer.release(slot)
        if may_send:
            return slot
        if is_open or self._stopping.is_set():
            raise StoppedError
        return None

    async def _may_send(self, work: Work) -> bool:
        """Whether the run continues and the job is still ours: a process that was suspended may have lost it.

        Raises:
            StoreUnavailableError: another process took the run.
        """
        await self._store.hold()
        if self.fence is not None:
            work.taken_over = not await self.fence(work.job)
        return not (work.taken_over or self._stopping.is_set())

    async def _promise(self, work: Work) -> None:
        """Set the price aside; of several routes the dearest's, for any may take the job.

        Raises:
            BudgetSpentError: it does not fit under the run's limit.
            NoRouteError: no route is left that the job may take.
        """
        if self.is_in_question(work):
            await self._ask_first(work)
        while self._routes.are_several and work.job.request_id is None:
            routes = self._routes.candidates(work)
            if not routes:
                raise NoRouteError
            dearest = max(routes, key=lambda route: route.price(work.job))
            work.purchase.move(dearest.price(work.job))
            try:
                await work.purchase.promise()
            except BudgetSpentError:
                if self._routes.open == [dearest] or self._stopping.is_set():
                    raise
                self.close(dearest, StopKind.OUT_OF_BUDGET, self._cost.sentence)
            else:
                return
        await work.purchase.promise()

    def spend_no_more(self) -> None:
        """Nothing more can be bought: the run stops once all that was bought, here or before, is home."""
        self.is_spent = True
        if self.expected or self.at_work:
            return
        if self._routes.open:
            self._stop(StopKind.OUT_OF_BUDGET, self._cost.sentence)
        else:
            self._stop(*self._why_none_is_left())

    def close(self, route: Route, kind: StopKind, reason: str) -> None:
        """Buy no more at a route; the run stops once none is left, and its earlier requests are home."""
        if not self._routes.are_several:
            self._stop(kind, reason)
            return
        if route.closed is None:
            self._recorder.event("route_closed", route=route.name, kind=kind, reason=reason)
            route.close(Stop(kind, reason))
            self._routes.look_again()
        if self._routes.open:
            return
        if self.expected:
            self.spend_no_more()
        else:
            self._stop(*self._why_none_is_left())

    def strand(self, job: Job, *, perhaps_later: bool) -> None:
        """No route is left for a job; ``perhaps_later``: one may be at the end."""
        self.stranded[job.number] = None if job.request_id is None else self._routes.of(job)
        if perhaps_later:
            self.perhaps_later.add(job.number)

    def take_left(self) -> list[int]:
        """The jobs to try again at the end, ascending: the parked, and those that may have a route now."""
        left, self.parked = self.parked, set()
        if not any(route.breaker.has_given_up for route in self._routes.open):
            left |= self.perhaps_later
            for number in self.perhaps_later:
                self.stranded.pop(number, None)
        return sorted(left)

    @property
    def why_stranded(self) -> Stop | None:
        """Why jobs have no route left, if any has none."""
        if not self.stranded:
            return None
        kind, reasons = self._why_none_is_left()
        words = f"{counted(len(self.stranded), 'image has', 'images have')} no route left."
        kept_at = set(self.stranded.values())
        if not all(route.is_down for route in self._routes.open):
            for name in [route.name for route in self._routes if route in kept_at and route.is_down]:
                reasons += f" Images whose requests {name} has are made elsewhere with --give-up {name}."
        return Stop(kind, f"{words} {reasons.removeprefix('No route is left. ')}")

    def _close_spent(self, route: Route) -> None:
        if route.share is not None:
            self.close(route, StopKind.OUT_OF_BUDGET, route.share.sentence_of_route)

    def _give_up(self, work: Work) -> None:
        """All routes that the job may take have been down for too long."""
        if not self._routes.are_several:
            self._stop(StopKind.UNAVAILABLE, work.route.why_down)
        elif all(route.breaker.has_given_up for route in self._routes.open):
            self._stop(*self._why_none_is_left())
        else:
            self.strand(work.job, perhaps_later=True)

    def _park(self, work: Work) -> None:
        """Ask about a request at the end: its route is down, and the others need not wait for that."""
        self.parked.add(work.job.number)
        self.expected.add(work.job.number)
        work.purchase.defer()

    def _why_none_is_left(self) -> tuple[StopKind, str]:
        """Why routes take no jobs any more, one after another."""
        stops = {route.name: route.stop for route in self._routes if route.stop is not None}
        kinds = {stop.kind for stop in stops.values()}
        words = " ".join(f"{name}: {stop.reason}" for name, stop in stops.items())
        return kinds.pop() if len(kinds) == 1 else StopKind.UNAVAILABLE, f"No route is left. {words}"
