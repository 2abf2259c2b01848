"""What queued APIs share: submit, be told or ask at well-chosen moments, fetch the image.

What was submitted once is never paid twice: the request's handle is stored before the first look, and any
trouble while asking leaves the request as it is, to be asked about again.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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

_MOST_PAGES_LATE = 500
"""Pages that are read at most for answers of earlier days; once for all jobs of a process."""

REQUEST_GONE = "request_gone"
"""The code of the error for a request that the API does not know."""

_CLOCKS_DIFFER = timedelta(minutes=5)

_BUSY_S = 1.0
"""The first wait after a look that was refused for coming too often, in seconds; it doubles."""


_UNHEARD_OF_S = 10.0
"""A queue may not know a request yet that it has just taken: so many seconds after, a 404 is not believed."""


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request that an API lists: its handle, what it asked for, and whether it ended without an image.

    ``answer`` is what it was answered with, where the list keeps that.
    """

    handle: str
    asked: object
    failed: bool = False
    answer: object = None


class _Wanted:
    """Jobs by all that they ask for, each with the fields that the API repeats of a request."""

    def __init__(self, jobs: Iterable[tuple[Job, dict[str, Any]]]) -> None:
        self._jobs: dict[tuple[str, ...], dict[bytes, list[Job]]] = {}
        self._left = 0
        for job, asked in jobs:
            names = tuple(sorted(asked))
            self._jobs.setdefault(names, {}).setdefault(_digest(asked, names), []).append(job)
            self._left += 1

    def __bool__(self) -> bool:
        return self._left > 0

    def take(self, asked: object) -> Job | None:
        """A job that asks for the same, once; fields that an API adds of its own do not count."""
        if not isinstance(asked, dict):
            return None
        for names, jobs in self._jobs.items():
            if same := jobs.get(_digest(asked, names)):
                self._left -= 1
                return same.pop(0)
        return None


def _digest(asked: dict[str, Any], names: tuple[str, ...]) -> bytes:
    """What a request says in these fields. An API may spell a whole number as 7.0."""
    fields = {name: asked.get(name) for name in names}
    return repr(_plain(fields)).encode("utf-8", "surrogatepass")


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return sorted((str(name), _plain(item)) for name, item in value.items())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _known_by(job: Job, submitted_at: float | None) -> float:
    """When the API must know the job's request, by the loop's clock."""
    if submitted_at is not None:
        return submitted_at + _UNHEARD_OF_S
    age_s = time.time() - (job.started_at or 0.0)
    return anyio.current_time() + max(0.0, _UNHEARD_OF_S - max(0.0, age_s))


class QueuedApi(ImageApi):
    """An API that takes a request, and is asked about it until the image is there.

    A handle names a request for later looks: the vendor's request id, or whatever :meth:`handle_of` finds.
    """

    success: ClassVar[frozenset[int]] = frozenset({200, 201, 202})

    list_kept: ClassVar[timedelta] = timedelta(days=1)

    _times: CompletionTimes = PrivateAttr()
    _answers: dict[str, PastRequest] = PrivateAttr(default_factory=dict)
    _answers_since: datetime = PrivateAttr(default=datetime.max.replace(tzinfo=UTC))
    _reading: anyio.Lock = PrivateAttr(default_factory=anyio.Lock)

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
            if source is None:
                known_by = _known_by(job, submitted_at)
                try:
                    source = await self._completed(http, handle, submitted_at, known_by)
                except ApiError as error:
                    if error.code != REQUEST_GONE:
                        raise
                    source = await self._late(http, handle, job, error)
            content = await self._image(http, handle, source)
        charged = self.charge(job)
        return GeneratedImage(
            content, charged.usd, flagged=source.flagged, request_id=handle, cost_source=charged.source
        )

    def is_paid(self, request_id: str | None) -> bool:
        """Never: a queued request is charged when its image is made, some time after it has its id."""
        del request_id
        return False

    async def find_lost(
        self, http: httpx.AsyncClient, jobs: Sequence[Job], known: Collection[str] = ()
    ) -> AsyncIterator[tuple[Job, str]]:
        """Look for the jobs' requests among those that the API lists: what asks for the same is the same.

        Of several that ask for the same, the newest that has not failed is a job's own.
        """
        wanted = _Wanted((job, self.input_of(job)) for job in jobs)
        since = self._listed_since(min((job.started_at or 0.0 for job in jobs), default=0.0))
        failed: list[PastRequest] = []
        async for past in self.past_requests(http, since):
            if not 0 < len(past.handle) <= MAX_HANDLE_LENGTH or past.handle in known:
                continue
            if past.failed:
                failed.append(past)
            elif (job := wanted.take(past.asked)) is not None:
                yield job, past.handle
            if not wanted:
                return
        for past in failed:
            if (job := wanted.take(past.asked)) is not None:
                yield job, past.handle

    def _listed_since(self, begun: float) -> datetime:
        """From when on requests are listed, for one that was sent at ``begun``, in Unix seconds."""
        kept = datetime.now(UTC) - self.list_kept
        return max(kept, datetime.fromtimestamp(begun, UTC) - _CLOCKS_DIFFER)

    async def _late(self, http: httpx.AsyncClient, handle: str, job: Job, gone: ApiError) -> ImageSource:
        """The image of a request that the queue has forgotten, where the list still knows its answer.

        Raises:
            ApiError: it does not, or there was no image.
        """
        async with self._reading:
            since = self._listed_since(job.started_at or 0.0)
            if since < self._answers_since:
                try:
                    async for past in self.past_requests(http, since, most_pages=_MOST_PAGES_LATE):
                        self._answers[past.handle] = replace(past, asked=None)
                except ApiError as error:
                    refused = error.error_class in {ErrorClass.UNAUTHORIZED, ErrorClass.BAD_REQUEST}
                    if refused or error.code == REQUEST_GONE:
                        raise gone from error  # there is no list, or not for this key
                    error.keep_request = True
                    raise
                self._answers_since = since
        found = self._answers.pop(handle, None)
        if found is None:
            raise gone
        if found.failed:
            words = f"{self.provider} made no image of the request, and does not know why any more"
            raise ApiError(ErrorClass.SERVER_ERROR, words, code="request_failed") from gone
        source = self.source_in(found.answer) if isinstance(found.answer, dict) else None
        if source is None:
            raise gone
        return source

    async def past_requests(
        self,
        http: httpx.AsyncClient,  # noqa: ARG002 - not every API lists requests
        since: datetime,  # noqa: ARG002
        *,
        most_pages: int = MOST_PAGES,  # noqa: ARG002
    ) -> AsyncIterator[PastRequest]:
        """Requests since then, the newest first; bounded.

        Raises:
            ApiError: the API does not tell.
        """
        none: tuple[PastRequest, ...] = ()
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
        return ApiError(ErrorClass.TIMEOUT, message, code=REQUEST_GONE)

    async def _completed(
        self, http: httpx.AsyncClient, handle: str, submitted_at: float | None, known_by: float
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
                unheard_of = error.code == REQUEST_GONE and anyio.current_time() < known_by
                too_often = error.error_class is ErrorClass.RATE_LIMITED and error.keep_request
                if not unheard_of and not too_often:
                    raise
                pause_s = error.retry_after_s or max(_BUSY_S, 2 * pause_s)
                over = False
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
