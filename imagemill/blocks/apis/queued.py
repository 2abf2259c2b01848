"""What queued APIs share: submit, follow or poll at well-chosen moments, fetch the image.

What was submitted once is never paid twice: the request's handle is stored before the first look, and any
trouble while asking leaves the request as it is, to be asked about again.

Where the vendor reports whether a request waits or is being made, the wait in its queue has a patience of
its own (``queue_timeout_s``), and ``request_timeout_s`` runs from the moment the image is being made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Protocol

import anyio
import httpx
from pydantic import Field, PrivateAttr

from imagemill.blocks.apis.error_codes import QUEUE_TIMEOUT, REQUEST_GONE, UNKNOWN_ANSWER
from imagemill.blocks.apis.exchange import fetch, parsed, unexpected_answer
from imagemill.blocks.apis.generated_image import PAID, Accepted, GeneratedImage, ImageSource
from imagemill.blocks.apis.past_requests import MAX_HANDLE_LENGTH, ListingApi
from imagemill.blocks.apis.polling import CompletionTimes
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.request_watch import RequestState, RequestWatch

_BUSY_S = 1.0
"""The first wait after a look that was refused for coming too often, in seconds; it doubles."""

_QUEUE_LOOK_S = (0.25, 5.0)
"""The shortest and longest wait between two looks at a request in the queue, in seconds."""

_CANCEL_S = 5.0
_LONGEST_S = 86_400.0

_UNHEARD_OF_S = 10.0
"""A queue may not know a request yet that it has just taken: so many seconds long, a 404 is not believed.

They begin when this process first asks about it: how long ago another sent it, only clocks could say.
"""


class OnState(Protocol):
    """Called with each state that a vendor reports, and how long the image took to make, in seconds."""

    def __call__(self, state: RequestState, made_in_s: float | None = None) -> None: ...


class QueuedApi(ListingApi):
    """An API that takes a request, and is asked about it until the image is there.

    A handle names a request for later looks: the vendor's request id, or whatever :meth:`handle_of` finds.
    """

    success: ClassVar[frozenset[int]] = frozenset({200, 201, 202})

    queue_timeout_s: float = Field(
        default=3600.0,
        gt=0,
        description="How long a request may wait in the vendor's queue until its image is begun, in seconds.",
    )

    _times: CompletionTimes = PrivateAttr()
    # Request ids of earlier processes, and when they were first asked about, on the clock of anyio.
    _asked_from: dict[str, float] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: object, /) -> None:
        """Start with a guess on the early side: a look too early costs less than one too late."""
        super().model_post_init(context)
        self._times = CompletionTimes(self.typical_latency_s / 3)

    @abstractmethod
    def handle_of(self, answer: dict[str, Any]) -> str | None:
        """The handle in the answer to a generation request; None where there is none."""

    @abstractmethod
    def look_url(self, handle: str) -> str:
        """The address that is asked about a request.

        Raises:
            ApiError: the handle leads somewhere the key must not go.
        """

    def read_at_once(self, answer: dict[str, Any]) -> ImageSource | None:
        """The image in the answer to a generation request, for APIs that may finish before they answer."""
        del answer
        return None

    async def generate(self, http: httpx.AsyncClient, job: Job, accepted: Accepted) -> GeneratedImage:
        """Submit, unless the job has a request id already; then wait for it and fetch the image."""
        watch = RequestWatch.of(accepted)
        source = submitted_at = first = None
        if job.request_id is None:
            try:
                async with self.attempt():
                    answer = await self.post(http, job)
                submitted_at = anyio.current_time()
                handle = self.handle_of(answer) or ""
                if not 0 < len(handle) <= MAX_HANDLE_LENGTH:
                    raise unexpected_answer(answer)
                source = self.read_at_once(answer)
            except ApiError as error:
                # The API took the request, and nothing names it.
                error.doubtful = error.doubtful or error.code == UNKNOWN_ANSWER
                raise
            self.look_url(handle)  # refuses what must not be asked before it is stored
            self._known_here[handle] = submitted_at
            await watch(handle)
            first = None if source else self.state_of(answer)
        else:
            handle = job.request_id.removeprefix(PAID)
        async with self._patiently(http, handle, watch) as on_state:
            if first:
                on_state(first)
            if source is None:
                try:
                    source = await self._completed(http, handle, submitted_at, watch, on_state)
                except ApiError as error:
                    if error.code != REQUEST_GONE:
                        raise
                    source = await self._late(http, handle, job, error)
            on_state(RequestState.COMPLETED)
            async with self._fetching(job, handle, watch):
                content = await self._perhaps_late(handle, partial(self._image, http, handle, source))
        charged = self.charge(job)
        return GeneratedImage(content, charged.usd, request_id=handle, cost_source=charged.source)

    @asynccontextmanager
    async def _patiently(
        self, http: httpx.AsyncClient, handle: str, watch: RequestWatch
    ) -> AsyncIterator[OnState]:
        """An attempt whose time limit starts anew with each state, and is the queue's own in the queue."""
        try:
            async with self.attempt(keep_request=True) as patience:

                def on_state(state: RequestState, made_in_s: float | None = None) -> None:
                    if state is not watch.state:
                        queued = state is RequestState.QUEUED
                        patience_s = self.queue_timeout_s if queued else self.request_timeout_s
                        patience.deadline = anyio.current_time() + patience_s
                        watch.enter(state, made_in_s or self.typical_latency_s)

                yield on_state
        except ApiError as error:
            if patience.cancelled_caught and watch.state is RequestState.QUEUED:
                error.code = QUEUE_TIMEOUT
                error.message = f"still in the vendor's queue after {self.queue_timeout_s:g} s"
                error.keep_request = not await self.cancel(http, handle)
            raise

    def is_paid(self, request_id: str | None) -> bool:
        """Only where its image is booked: a request has its id before its image is made and charged."""
        return request_id is not None and request_id.startswith(PAID)

    def state_of(self, answer: dict[str, Any]) -> RequestState | None:
        """Whether an answer says that its request waits or is being made; None where the API doesn't say."""
        del answer
        return None

    async def follow_states(self, http: httpx.AsyncClient, handle: str, on_state: OnState) -> bool:
        """Follow a stream of the request's states until it is completed; False where there is no such stream.

        An API without one is polled, at moments that the latencies seen suggest.
        """
        del http, handle, on_state
        return False

    async def look(
        self, http: httpx.AsyncClient, handle: str, on_state: OnState, *, over: bool = False
    ) -> ImageSource | None:
        """Ask about a request once: where its image is, None while it is being made.

        ``over``: a stream of states has already said that the request is completed.

        Raises:
            ApiError: it ended without an image; or could not be asked about, then with ``keep_request``.
        """
        del over
        answer = await self.ask(http, self.look_url(handle))
        self.report(answer, on_state)
        return self.source_in(answer)

    def report(self, answer: dict[str, Any], on_state: OnState) -> RequestState | None:
        """Pass on the state in an answer, if any, and how long the vendor says that the image took."""
        state = self.state_of(answer)
        if state:
            metrics = answer.get("metrics")
            times = metrics.values() if isinstance(metrics, dict) else ()
            made_in_s = next((t for t in times if isinstance(t, int | float) and 0 < t < _LONGEST_S), None)
            on_state(state, made_in_s)
        return state

    async def cancel(self, http: httpx.AsyncClient, handle: str) -> bool:
        """Withdraw a request that still waits in the queue; whether it certainly costs nothing now."""
        with anyio.move_on_after(_CANCEL_S, shield=True):
            try:
                return await self.withdraw(http, handle)
            except (ApiError, httpx.HTTPError):
                pass  # it stays what it is, and is asked about later
        return False

    async def withdraw(self, http: httpx.AsyncClient, handle: str) -> bool:
        """Ask the vendor to cancel a request, and make sure that it did; False where it cannot.

        Raises:
            ApiError, httpx.HTTPError: there was no answer.
        """
        del http, handle
        return False

    async def ask(self, http: httpx.AsyncClient, url: str) -> dict[str, Any]:
        """One question about a request, and its answer.

        Raises:
            ApiError: there was none, which says nothing about the request: it is kept, unless it is gone.
        """
        status, headers, body = await fetch(http, "GET", url, headers=self.headers)
        if status not in {200, 202}:
            raise self.look_error(status, headers, body)
        return parsed(body)

    def look_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """An error met while asking about a request: it is still there, unless the API says it is not."""
        if status in {404, 410}:
            return self.request_gone()
        error = self.error_of(status, headers, body)
        error.keep_request = True
        return error

    def request_gone(self) -> ApiError:
        """The API does not know the request any more: the job may be sent anew."""
        message = f"{self.provider} does not know the request any more"
        return ApiError(ErrorClass.TIMEOUT, message, code=REQUEST_GONE)

    async def _completed(
        self,
        http: httpx.AsyncClient,
        handle: str,
        submitted_at: float | None,
        watch: RequestWatch,
        on_state: OnState,
    ) -> ImageSource:
        """Wait until the image is made. An answer to poll less often costs a wait, not the job's budget.

        A request from earlier, whose time of submission is not known, is looked at at once, and says nothing
        about how long images take.
        """
        begun = submitted_at
        if look_at_once := begun is None:
            begun = anyio.current_time()
        known_from = self._known_here.get(handle) or self._asked_from.setdefault(handle, begun)
        known_by = known_from + _UNHEARD_OF_S
        over = blind = False
        seen_s = pause_s = 0.0
        while True:
            if not (over or look_at_once):
                over = await self.follow_states(http, handle, on_state)
                if not over:
                    blind = submitted_at is not None
                    elapsed_s = anyio.current_time() - begun - watch.queued_s
                    pause_s = max(pause_s, self._next_look(watch, seen_s, elapsed_s) - elapsed_s)
            look_at_once = False
            await anyio.sleep(max(pause_s, 0.0))
            looked_s = anyio.current_time() - begun - watch.queued_s
            waited = watch.state is RequestState.QUEUED
            try:
                source = await self._looked(http, handle, on_state, over=over)
            except ApiError as error:
                unheard_of = error.code == REQUEST_GONE and anyio.current_time() < known_by
                too_often = error.error_class is ErrorClass.RATE_LIMITED and error.keep_request
                if not unheard_of and not too_often:
                    raise
                pause_s = error.retry_after_s or max(_BUSY_S, 2 * pause_s)
                if unheard_of:  # and no longer than it may be
                    pause_s = min(pause_s, max(_BUSY_S, known_by - anyio.current_time()))
                look_at_once, over = True, False
                continue
            pause_s = 0.0
            if source:
                if blind and not waited:
                    self._times.completed(seen_s, looked_s)
                return source
            seen_s = 0.0 if waited else looked_s

    def _next_look(self, watch: RequestWatch, seen_s: float, elapsed_s: float) -> float:
        """When to poll next, in seconds since the image may have been begun."""
        if watch.state is not RequestState.QUEUED:
            return self._times.next_look(seen_s)
        least_s, most_s = _QUEUE_LOOK_S
        return elapsed_s + min(max(0.1 * elapsed_s, least_s), most_s)

    async def _looked(
        self, http: httpx.AsyncClient, handle: str, on_state: OnState, *, over: bool = False
    ) -> ImageSource | None:
        try:
            return await self.look(http, handle, on_state, over=over)
        except ApiError as error:
            # A proxy's page instead of an answer says nothing about the request.
            error.keep_request = error.keep_request or error.code == UNKNOWN_ANSWER
            raise

    async def _image(self, http: httpx.AsyncClient, handle: str, source: ImageSource) -> bytes:
        try:
            return await self.content(http, source)
        except ApiError as error:
            if error.code != "image_link_expired":
                raise
            # Some give a fresh link when they are asked again, free of charge; others give the old one.
            try:
                fresh = await self._looked(http, handle, _ignored)
            except ApiError as gone:
                if gone.code == REQUEST_GONE:  # it was there a moment ago
                    raise error from gone
                raise
        return await self.content(http, fresh or source)


def _ignored(state: RequestState, made_in_s: float | None = None) -> None:
    """The image is made: its state says nothing new."""
