"""Looks for requests whose answer was lost in the vendor's list of requests, before anything is sent again.

A request that still runs is in no list that is sorted by its end, so one look proves nothing: the list is
read again and again until every request of that time has had time to end. All jobs that wait share each
reading. A reading that fails proves nothing either, and one alone may be a cache's: there are two at least.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import anyio
import httpx

from imagemill.blocks.apis import ImageApi
from imagemill.engine.breaker import Breaker
from imagemill.engine.recorder import Recorder
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

FIRST_LOOK_S = 1.0
"""The wait before the first look within a run, in seconds; it doubles from look to look."""
_LONGEST_PAUSE_S = 15.0
"""The longest wait between two looks: who waits for a list that cannot be read notices soon that it can."""

LEAST_S = 10.0
"""How long a lost request is looked for at least, in seconds, before it is sent again."""

_LEAST_READ = 2
"""It is sent again only once so many readings did not have it."""

_LATENCIES = 2.0
"""It is looked for this many times as long as the slowest request has taken."""

_UNREADABLE_S = 60.0
_UNREADABLE_TIMES = 16
"""How long a list that cannot be read is tried at least, in seconds, for twice the patience, and how often.

A reading that hangs may take a minute alone, and eight in a row are lost now and then where half of them are.
While the API is down it is tried for as long as the run waits for that, however often that is.
"""


class LostRequests:
    """The search for lost requests; one for all jobs of a process."""

    def __init__(self, api: ImageApi, http: httpx.AsyncClient, breaker: Breaker, recorder: Recorder) -> None:
        self._api = api
        self._http = http
        self._breaker = breaker
        self._recorder = recorder
        self.slowest_s = 0.0
        """How long the slowest of the latest requests took, its time in the vendor's queue included."""
        self._waiting: dict[int, Job] = {}
        self._found: dict[int, str] = {}
        self._reading = anyio.Lock()
        self._readings, self._is_read = 0, False
        self._refused = False

    @property
    def can_look(self) -> bool:
        """Whether the API lists requests, and this key may read the list."""
        return self._api.lists_requests and not self._refused

    def took(self, seconds: float) -> None:
        """A request was answered with its image after so long, its time in the vendor's queue included."""
        self.slowest_s = max(seconds, 0.9 * self.slowest_s)

    @property
    def patience_s(self) -> float:
        """How long a lost request is looked for, in seconds."""
        return max(
            min(LEAST_S, self._api.request_timeout_s),
            10 * self._api.typical_latency_s if self._api.request_timeout_s > LEAST_S else 0.0,
            _LATENCIES * self.slowest_s,
        )

    async def find(self, job: Job, stopping: anyio.Event) -> str | None:
        """The id of the job's lost request; None if the list does not have it, however often it is read."""
        begun, pause_s, times, read = anyio.current_time(), FIRST_LOOK_S, 0, 0
        while self.can_look and not stopping.is_set():
            left_s = self.patience_s - (anyio.current_time() - begun)
            is_last = left_s <= pause_s  # begun no earlier than the slowest request can have ended
            with anyio.move_on_after(pause_s if left_s <= 0 else min(pause_s, left_s)):
                await stopping.wait()
                break
            request_id, is_read = await self._look(job)
            times, read = times + 1, read + is_read  # readings for other jobs do not count
            unreadable = self._is_unreadable(anyio.current_time() - begun, times)
            is_over = unreadable or (is_read and read >= _LEAST_READ)
            if request_id is not None or (is_last and is_over):
                return request_id
            pause_s = FIRST_LOOK_S if is_last and left_s > 0 else min(2 * pause_s, _LONGEST_PAUSE_S)
        return None

    def _is_unreadable(self, tried_s: float, times: int) -> bool:
        """Whether a list that could not be read for so long, and so often, is given up."""
        if tried_s <= max(_UNREADABLE_S, 2 * self.patience_s):
            return False
        return self._breaker.has_given_up or (times >= _UNREADABLE_TIMES and not self._breaker.is_open)

    async def find_now(self, jobs: Collection[Job]) -> dict[int, str]:
        """One look for many jobs: request ids by the jobs' numbers."""
        found, _ = await self._read(list(jobs))
        return found

    async def _look(self, job: Job) -> tuple[str | None, bool]:
        """The id of the job's request, if it is found, and whether the list could be read."""
        self._waiting[job.number] = job
        before = self._readings
        try:
            async with self._reading:
                if job.number not in self._found and self._readings == before:  # or one was begun since
                    self._readings, self._is_read = self._readings + 1, False
                    found, self._is_read = await self._read(list(self._waiting.values()))
                    self._found |= found
                return self._found.pop(job.number, None), self._is_read
        finally:
            del self._waiting[job.number]

    async def _read(self, wanted: Sequence[Job]) -> tuple[dict[int, str], bool]:
        """One reading: request ids by the jobs' numbers, and whether the list was read to its end."""
        is_read = False
        found: dict[int, str] = {}
        known = {request_id for job in wanted for request_id in job.request_ids}  # these were not lost
        try:
            async for job, request_id in self._api.find_lost(self._http, wanted, known):
                found[job.number] = request_id
            is_read = True
        except ApiError as error:
            self._refused = error.error_class in {ErrorClass.UNAUTHORIZED, ErrorClass.BAD_REQUEST}
            self._recorder.event("requests_not_listed", reason=error.message)
        except Exception as error:  # noqa: BLE001 - a list of any shape ends no run
            self._recorder.event("requests_not_listed", reason=type(error).__name__)
        self._recorder.event("requests_found", found=len(found), lost=len(wanted))
        return found, is_read
