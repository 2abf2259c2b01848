"""What queued APIs share: submit, be told or ask at well-chosen moments, fetch the image.

What was submitted once is never paid twice: the request's handle is stored before the first look, and any
trouble while asking leaves the request as it is, to be asked about again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import anyio
import httpx
from pydantic import PrivateAttr

from imagemill.blocks.apis.base import Accepted, GeneratedImage, ImageApi, ImageSource
from imagemill.blocks.apis.exchange import UNKNOWN_ANSWER, fetch, parsed, unexpected_answer
from imagemill.blocks.apis.polling import CompletionTimes
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

MAX_HANDLE_LENGTH = 2_000

MOST_PAGES = 50
"""Pages of past requests that are read at most, some hundred requests each."""

_CLOCKS_DIFFER = timedelta(minutes=5)

_BUSY_S = 1.0
"""The first wait after a look that was refused for coming too often, in seconds; it doubles."""


class QueuedApi(ImageApi):
    """An API that takes a request, and is asked about it until the image is there.

    A handle names a request for later looks: the vendor's request id, or whatever :meth:`handle_of` finds.
    """

    success: ClassVar[frozenset[int]] = frozenset({200, 201, 202})

    _times: CompletionTimes = PrivateAttr()

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
        source = submitted_at = None
        if job.request_id is None:
            async with self.attempt():
                answer = await self.post(http, job)
            submitted_at = anyio.current_time()
            handle = self.handle_of(answer) or ""
            if not 0 < len(handle) <= MAX_HANDLE_LENGTH:
                raise unexpected_answer(answer)
            source = self.read_at_once(answer)
            self.look_url(handle)  # refuses what must not be asked before it is stored
            await accepted(handle)
        else:
            handle = job.request_id
        async with self.attempt(keep_request=True):
            source = source or await self._completed(http, handle, submitted_at)
            content = await self._image(http, handle, source)
        return GeneratedImage(
            content,
            self.price_usd(job.width, job.height, job.steps, job.params),
            flagged=source.flagged,
            request_id=handle,
        )

    async def find_lost(self, http: httpx.AsyncClient, jobs: Sequence[Job]) -> AsyncIterator[tuple[Job, str]]:
        """Look for the jobs' requests among those that the API lists: what asks for the same is the same."""
        wanted = {(job.prompt, job.seed): job for job in jobs}
        day_ago = datetime.now(UTC) - timedelta(days=1)
        begun = min((job.started_at or 0.0 for job in jobs), default=0.0)
        since = max(day_ago, datetime.fromtimestamp(begun, UTC) - _CLOCKS_DIFFER)
        async for handle, asked in self.past_requests(http, since):
            if not isinstance(asked, dict) or not 0 < len(handle) <= MAX_HANDLE_LENGTH:
                continue
            prompt, seed = asked.get("prompt"), asked.get("seed")
            job = wanted.get((prompt, seed)) if isinstance(prompt, str) and isinstance(seed, int) else None
            if job is None:
                continue
            if all(asked.get(name) == value for name, value in self.input_of(job).items()):
                del wanted[job.prompt, job.seed]
                yield job, handle
            if not wanted:
                return

    async def past_requests(
        self,
        http: httpx.AsyncClient,  # noqa: ARG002 - not every API lists requests
        since: datetime,  # noqa: ARG002
    ) -> AsyncIterator[tuple[str, object]]:
        """The handles of requests since then and what they asked for, the newest first; bounded.

        Raises:
            ApiError: the API does not tell.
        """
        none: tuple[tuple[str, object], ...] = ()
        for request in none:
            yield request

    def input_of(self, job: Job) -> dict[str, Any]:
        """What the API repeats of a request for this job where it lists requests."""
        return self.body(job)

    async def told(self, http: httpx.AsyncClient, handle: str) -> bool:
        """Wait until the API tells by itself that a request is over; False where it does not tell.

        An API without a way to tell is looked at, at moments that the latencies seen suggest.
        """
        del http, handle
        return False

    async def look(self, http: httpx.AsyncClient, handle: str, *, over: bool = False) -> ImageSource | None:
        """Ask about a request once: where its image is, None while it is being made.

        ``over`` says that the API told already that it is being made no longer.

        Raises:
            ApiError: it ended without an image; or could not be asked about, then with ``keep_request``.
        """
        del over
        return self.source_in(await self.ask(http, self.look_url(handle)))

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
        return ApiError(ErrorClass.TIMEOUT, message, code="request_gone")

    async def _completed(
        self, http: httpx.AsyncClient, handle: str, submitted_at: float | None
    ) -> ImageSource:
        """Wait until the image is made. Being told to ask less often costs a wait, not the job's budget.

        A request from earlier, whose time of submission is not known, is looked at at once, and says nothing
        about how long images take.
        """
        begun = anyio.current_time() if submitted_at is None else submitted_at
        look_s = seen_at = pause_s = 0.0
        over = submitted_at is not None and await self.told(http, handle)
        blind = submitted_at is not None and not over
        if blind:
            look_s = self._times.next_look(anyio.current_time() - begun)
        while True:
            await anyio.sleep(max(look_s + begun - anyio.current_time(), pause_s))
            looked_at = anyio.current_time() - begun
            look_s = self._times.next_look(looked_at)
            try:
                source = await self._looked(http, handle, over=over)
            except ApiError as error:
                if error.error_class is not ErrorClass.RATE_LIMITED or not error.keep_request:
                    raise
                pause_s = error.retry_after_s or max(_BUSY_S, 2 * pause_s)
                continue
            pause_s = 0.0
            if source:
                if blind:
                    self._times.completed(seen_at, looked_at)
                return source
            seen_at = looked_at

    async def _looked(
        self, http: httpx.AsyncClient, handle: str, *, over: bool = False
    ) -> ImageSource | None:
        try:
            return await self.look(http, handle, over=over)
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
        return await self.content(http, await self._looked(http, handle) or source)
