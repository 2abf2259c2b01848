"""What earlier processes and lost machines have sent: the APIs are asked about it before anything is sent."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import anyio
import httpx

from imagemill.blocks.apis.generated_image import PAID
from imagemill.engine.route import PATIENCE_S, Route
from imagemill.engine.routes import Routes
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

_NAMES_AT_ONCE = 10
"""So many requests are asked about by name at once."""

_NAMES_S = 60.0
"""How long they are asked about in all, in seconds: an API may not answer, and there may be thousands."""

_ARRIVED_S = 120.0
"""No picture takes longer, in seconds, unless more is allowed: an API knows by then what it ever got."""

_PASSING = frozenset({ErrorClass.RATE_LIMITED, ErrorClass.SERVER_ERROR})
_ASK_AGAIN_S = 1.0
"""A question with such an answer is asked again, after so many seconds where the API names no other time."""


class EarlierRequests:
    """The requests that were sent before this process began."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._at_once = anyio.CapacityLimiter(_NAMES_AT_ONCE)
        self._asked_from: dict[str, float] = {}
        self._answered_at: dict[Route, float] = {}

    async def find_lost(self, jobs: Sequence[Job]) -> None:
        """Look for unanswered requests in the APIs' lists; a job whose request is there gets its id."""
        for is_own in (True, False):  # a lost machine may have sent it to any route
            for route in self._routes:
                lost = [job for job in jobs if job.request_id is None]
                lost = [job for job in lost if (self._routes.of(job) is route) is is_own]
                if not lost or route.is_given_up:
                    continue
                found = await route.lost.find_now(lost)
                for job in lost:
                    if request_id := found.get(job.number):
                        job.find_request(request_id, route.price(job), listed=True)
                        self._routes.place(job, route)

    async def find_named(self, jobs: Sequence[Job], unwritten: Mapping[int, int]) -> None:
        """Ask about requests that may have been sent under the names that these jobs have as their next.

        A job whose request an API has gets its id, and counts that attempt: where it failed, the next needs a
        name of its own. So does one whose request the only API does not know: it may be at work on it, and
        sent again under this name it is the same. ``unwritten`` is how many attempts of a job no line tells
        of: an API may have refused them, and left their names to the next.
        """

        async def ask(job: Job) -> None:
            said = list[bool | None]()
            found = set[object]()
            next_one = job.attempts + 1
            numbers = range(next_one, next_one - unwritten.get(job.number, 0) - 1, -1)
            nexts = [replace(job, attempts=number) for number in numbers]
            answered = {request_id.removeprefix(PAID) for request_id in job.request_ids}
            for route in self._routes:
                names = [name for one in nexts if (name := route.api.name_of(one))]
                names = names[:1] + [name for name in names[1:] if name not in answered]
                known = {name: await self._ask(route, partial(route.api.knows, name=name)) for name in names}
                name = next((name for name in names if known[name]), None)
                if not any(known.values()) and self._routes.of(job) is route:
                    # It never took those attempts, be it that it is at work on the last one under their name.
                    route.api.was_refused_further(job, list(known.values())[1:].count(False))
                said.append(None if not names or None in known.values() else name is not None)
                task = (route.api.base_url, route.api.api_key, name)
                if name is None or task in found:
                    continue
                if found:  # that of another lost machine: nobody will ask about it
                    job.lose_answer(route.price(job))
                else:
                    job.request_id, job.attempts = name, next_one
                    self._routes.place(job, route)
                found.add(task)
            if said == [False]:
                job.attempts = next_one
                job.request_id = self._routes.first.api.name_of(job)

        with anyio.move_on_after(_NAMES_S):
            async with anyio.create_task_group() as group:
                for job in jobs:
                    group.start_soon(ask, job)

    async def has_arrived(self, route: Route, job: Job, stopping: anyio.Event) -> bool | None:
        """Whether the API got the request that an earlier process named: it may know it only once it is done.

        Or, where that has failed, the one that was sent in place of it. It never got what it does not know
        two minutes after the first question. None where it has answered no question then, of this request or
        another, for as long again; or everything stops.
        """
        asked_from = self._asked_from.setdefault(job.request_id or "", anyio.current_time())
        patience_s = max(_ARRIVED_S, route.api.request_timeout_s)
        known_at = asked_from + patience_s
        give_up_at = max(known_at + patience_s, anyio.current_time() + _NAMES_S)
        found: bool | None = None

        async def ask() -> None:
            nonlocal found
            one, pause_s = job, _ASK_AGAIN_S
            while True:
                name = one.request_id or ""
                knows = await self._ask(route, partial(route.api.knows, name=name))
                has_failed = knows and await self._ask(route, partial(route.api.has_failed, name=name))
                now, until = anyio.current_time(), give_up_at
                if has_failed:  # as all may have, where an API calls so what it does not know
                    one = replace(one, attempts=one.attempts + 1)
                    one.request_id = route.api.name_of(one)
                elif has_failed is False and (knows or now >= known_at):
                    found = knows
                    break
                else:
                    until = max(until, self._answered_at.get(route, 0.0) + patience_s)
                if now >= until:
                    break
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, PATIENCE_S)
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await stopping.wait()
            group.cancel_scope.cancel()
        return found

    async def _ask(
        self, route: Route, question: Callable[[httpx.AsyncClient], Awaitable[bool]]
    ) -> bool | None:
        """What a route's API answers to a question about a request; None where it could not be asked."""
        async with self._at_once:
            with contextlib.suppress(httpx.HTTPError, TimeoutError), anyio.fail_after(PATIENCE_S):
                while True:
                    try:
                        answer = await question(route.http)
                    except ApiError as error:
                        if error.error_class not in _PASSING:
                            return None
                        await anyio.sleep(error.retry_after_s or _ASK_AGAIN_S)
                    else:
                        if not route.is_down:
                            route.breaker.accepted()  # refusals of minutes ago are no outage
                        self._answered_at[route] = anyio.current_time()
                        return answer
        return None
