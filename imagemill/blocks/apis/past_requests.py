"""Past requests that an API lists: where requests are found whose answer was lost, and forgotten images."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import anyio
import httpx
from pydantic import PrivateAttr

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.error_codes import REQUEST_GONE
from imagemill.blocks.apis.generated_image import PAID, ImageSource
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

MAX_HANDLE_LENGTH = 2_000

MOST_PAGES = 50
"""Pages of past requests that are read at most, some hundred requests each."""

_MOST_PAGES_LATE = 500
"""Pages that are read at most for answers that the queue has forgotten; one reading serves many jobs."""

_READ_AGAIN_S = 10.0
"""Between two readings for answers to this process's own requests, in seconds."""

_CLOCKS_DIFFER = timedelta(minutes=20)
"""How wrong this machine's clock may be: S3 rejects requests from one that is 15 minutes off."""


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


class ListingApi(ImageApi):
    """An API that may list past requests with what they asked for."""

    list_kept: ClassVar[timedelta] = timedelta(days=1)

    _answers: dict[str, PastRequest] = PrivateAttr(default_factory=dict)
    _answers_read: float = PrivateAttr(default=0.0)
    _answers_since: datetime = PrivateAttr(default=datetime.max.replace(tzinfo=UTC))
    _reading: anyio.Lock = PrivateAttr(default_factory=anyio.Lock)

    async def find_lost(
        self, http: httpx.AsyncClient, jobs: Sequence[Job], known: Collection[str] = ()
    ) -> AsyncIterator[tuple[Job, str]]:
        """Look for the jobs' requests among those that the API lists: what asks for the same is the same.

        Of several that ask for the same, the newest that has not failed is a job's own.
        """
        wanted = _Wanted((job, self.input_of(job)) for job in jobs)
        since = self._listed_since(min((job.started_at or 0.0 for job in jobs), default=0.0))
        answered = {request_id.removeprefix(PAID) for request_id in known}
        failed: list[PastRequest] = []
        async for past in self.past_requests(http, since):
            if not 0 < len(past.handle) <= MAX_HANDLE_LENGTH or past.handle in answered:
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
        asked_at = time.time()
        async with self._reading:
            since = self._listed_since(job.started_at or 0.0)
            # It may have ended after the list was read.
            ours = handle in self._known_here or (job.started_at or 0.0) > self._answers_read
            stale = self.lists_requests and ours and self._answers_read < asked_at
            if since < self._answers_since or (stale and handle not in self._answers):
                if since >= self._answers_since:
                    await anyio.sleep(self._answers_read + _READ_AGAIN_S - time.time())
                read_at = time.time()
                try:
                    async for past in self.past_requests(http, since, most_pages=_MOST_PAGES_LATE):
                        self._answers[past.handle] = replace(past, asked=None)
                except ApiError as error:
                    refused = error.error_class in {ErrorClass.UNAUTHORIZED, ErrorClass.BAD_REQUEST}
                    if refused or error.code == REQUEST_GONE:
                        raise gone from error  # there is no list, or not for this key
                    error.keep_request = True
                    raise
                self._answers_since, self._answers_read = min(since, self._answers_since), read_at
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
