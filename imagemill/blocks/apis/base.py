"""The small interface behind which every image API stands, and the way of one image through it.

A vendor's module says where to post (:meth:`ImageApi.endpoint`), what (:meth:`ImageApi.body`), and where the
image is in the answer (:meth:`ImageApi.read`); :mod:`imagemill.blocks.apis.queued` adds submitting and
polling. What the class builds on, from the bottom: :mod:`.account`, :mod:`.pricing`, :mod:`.client`,
:mod:`.links`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
from pydantic import PrivateAttr

from imagemill.blocks.apis.error_codes import IMAGE_HOST_REFUSED, UNKNOWN_ANSWER
from imagemill.blocks.apis.exchange import (
    MAX_LINK_LENGTH,
    fetch,
    is_link,
    joined,
    parsed,
    unexpected_answer,
)
from imagemill.blocks.apis.generated_image import (
    PAID,
    Accepted,
    Charge,
    GeneratedImage,
    ImageSource,
    flagged_image,
)
from imagemill.blocks.apis.links import ImageFetcher
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource, Job

_LATE_TIMES, _LATE_S = 3, 1.0
"""How often a link from before this process is tried again, after how long a wait at most, in seconds."""


class ImageApi(ImageFetcher):
    """An account at a vendor of images. One instance serves a whole run, from one event loop."""

    # Links and request ids of this process, and when they became known, on the clock of anyio.
    _known_here: dict[str, float] = PrivateAttr(default_factory=dict)

    @property
    def queues(self) -> bool:
        """Whether the API refuses nothing, but queues what is too much and reports each request's state."""
        return False

    @abstractmethod
    def endpoint(self, job: Job) -> str:
        """The address that a generation request is posted to."""

    @abstractmethod
    def body(self, job: Job) -> dict[str, Any]:
        """The JSON body of a generation request."""

    def payload(self, job: Job) -> object:
        """What is posted for a generation request: the body, unless the API wants it wrapped."""
        return self.body(job)

    def begin(self, run_id: str) -> None:
        """A run is about to send requests: an API that lets its client name them names them after it."""

    def was_refused(self, job: Job, times: int) -> None:
        """The API did not take a job, or never got it, so often in this run before this process asked."""

    def was_refused_further(self, job: Job, times: int) -> None:
        """Nor so often besides, as the API says: no line tells of these attempts."""

    @abstractmethod
    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        """Where an answer has its image; None while the image is still being made.

        Raises:
            ApiError: the answer says that there will be none, or is of an unknown shape.
        """

    def source_in(self, answer: dict[str, Any]) -> ImageSource | None:
        """What :meth:`read` finds; an answer that makes it fail has an unknown shape.

        Raises:
            ApiError: as :meth:`read` does; and where the API flagged the image, which is not fetched then.
        """
        try:
            source = self.read(answer)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise unexpected_answer(answer) from None
        if source is not None and source.flagged:
            raise flagged_image()
        return source

    @property
    def picture_model(self) -> str:
        """What makes the picture, as a picture's key has it: vendor, model, and what is set of both."""
        return f"{self.provider}/{self.model}"

    @property
    def lists_requests(self) -> bool:
        """Whether the API lists past requests, so that :meth:`find_lost` may find some."""
        return False

    def name_of(self, job: Job) -> str | None:
        """The id of the job's latest request where it follows from the job; None where the API chooses it."""
        del job
        return None

    async def knows(self, http: httpx.AsyncClient, name: str) -> bool:
        """Whether the API has taken a request of this name, or may have; see :meth:`name_of`.

        Raises:
            ApiError, httpx.HTTPError: it could not be asked.
        """
        raise NotImplementedError

    async def has_failed(self, http: httpx.AsyncClient, name: str) -> bool:
        """Whether a request of this name, which the API knows, has failed, and another may be sent.

        Raises:
            ApiError, httpx.HTTPError: it could not be asked.
        """
        raise NotImplementedError

    def is_paid(self, request_id: str | None) -> bool:
        """Whether this names a request whose image was made, and booked, when the id became known."""
        return request_id is not None and (_is_link(request_id) or request_id.startswith(PAID))

    async def generate(
        self,
        http: httpx.AsyncClient,
        job: Job,
        accepted: Accepted,
    ) -> GeneratedImage:
        """Make one image. A job with a ``request_id`` is asked about first and not sent again.

        Where the answer is a link, the image is made and charged: the link is the job's request id from
        then on, and trouble with it asks the link again, not for another image.

        Raises:
            ApiError: there is no image, with the class of error that decides what follows.
        """
        link, charged = job.request_id or "", Charge(0.0, CostSource.LIST)
        if not _is_link(link):
            try:
                async with self.attempt():
                    answer = await self.post(http, job)
                    source = self.source_in(answer)
                    if source is None:
                        raise unexpected_answer(answer)
            except ApiError as error:
                error.doubtful = error.doubtful or error.code == UNKNOWN_ANSWER
                raise
            if not (isinstance(source.text, str) and is_link(source.text)):
                content = await self.content(http, source)
                charged = self.charge(job)
                return GeneratedImage(content, charged.usd, cost_source=charged.source)
            link = joined(f"{self.base_url}/", source.text)
            if len(link) > MAX_LINK_LENGTH:
                raise ApiError(
                    ErrorClass.BAD_REQUEST,
                    f"an image link of {len(link):,} characters",
                    code="bad_link",
                    charged=True,
                )
            self._known_here[link] = anyio.current_time()
            charged = self.charge(job)
            await accepted(link, charged.usd)
        content = await self._behind(http, link)
        self._known_here.pop(link, None)
        return GeneratedImage(content, charged.usd, request_id=link, cost_source=charged.source)

    async def _behind(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind a link whose image is paid for: any trouble leaves the link to be asked again.

        Only one of an earlier day that has expired is given up.
        """
        try:
            async with self.attempt(keep_request=True):
                return await self._perhaps_late(link, partial(self.download, http, link))
        except ApiError as error:
            error.charged = False  # it is booked since the link is known
            self._keep_made(error, link)
            raise

    async def _perhaps_late(self, request_id: str, get: Callable[[], Awaitable[bytes]]) -> bytes:
        """The image behind a link; one of a request from before this process may be seconds old, and late."""
        for _ in range(_LATE_TIMES):
            try:
                return await get()
            except ApiError as error:
                if error.code != "image_link_expired" or request_id in self._known_here:
                    raise
            await anyio.sleep(min(_LATE_S, self.request_timeout_s / (2 * _LATE_TIMES)))
        return await get()

    def _keep_made(self, error: ApiError, request_id: str) -> None:
        """An image that is made and cannot be fetched now is asked for again; a new link may only be late."""
        if error.code == IMAGE_HOST_REFUSED:
            error.keep_request = True  # a resume that trusts the host fetches the image
        if error.code == "image_link_expired" and request_id in self._known_here:
            error.error_class, error.code, error.keep_request = ErrorClass.TIMEOUT, "image_link", True
            error.message = error.message.partition(":")[0]

    @asynccontextmanager
    async def _fetching(self, job: Job, request_id: str, accepted: Accepted) -> AsyncIterator[None]:
        """Fetch the image that a request made: while that fails, the request is kept, and not sent anew.

        The image may never be fetched: its charge is booked at once.
        """
        try:
            yield
        except ApiError as error:
            self._keep_made(error, request_id)
            if error.charged and error.keep_request:
                await accepted(f"{PAID}{request_id}", self.charge(job).usd)
            raise
        self._known_here.pop(request_id, None)

    async def find_lost(
        self,
        http: httpx.AsyncClient,  # noqa: ARG002 - an API that keeps no list of requests is not asked
        jobs: Sequence[Job],  # noqa: ARG002
        known: Collection[str] = (),  # noqa: ARG002
    ) -> AsyncIterator[tuple[Job, str]]:
        """Requests for these jobs that the API took, and whose answer nobody got: jobs and request ids.

        ``known`` are the ids of requests that were answered.

        Raises:
            ApiError: the API does not tell.
        """
        none: tuple[tuple[Job, str], ...] = ()
        for found in none:
            yield found

    async def post(self, http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
        """Send a generation request; its answer, where the API took it."""
        status, headers, body = await fetch(
            http, "POST", self.endpoint(job), headers=self.headers, json=self.payload(job)
        )
        if status not in self.success:
            raise self.error_of(status, headers, body)
        answer = parsed(body)
        self._note_charge(job, self.told_usd(headers, answer, job))
        return answer


def _is_link(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://"))
