"""fal: queued, or synchronous with ``queued=False``.

Queued: submit, follow the stream of the request's states, fetch the result, download the image. Where the
stream breaks off, and on a resume, the status is asked for instead. Synchronous (fal.run): one request,
and the image is in the answer as a data URI; what is lost on the way is lost.

- Authorization: ``Key KEY``, from FAL_KEY.
- Sizes from 64 to 2,048 pixels, any multiple; 1 to 12 steps. Formats: jpeg, png. Seeds are used; a negative
  prompt is not taken.
- Errors: ``{"detail": [{loc, msg, type}]}`` with 422, else ``{"detail": "..."}``; the code is in
  ``X-Fal-Error-Type``. 429: so many requests at once an account, without a number or a Retry-After. An
  exhausted balance is a 403 that says so. A flagged image comes back black, with ``has_nsfw_concepts``.
- Old requests can be asked about, and give fresh links to their images.
- Requests of the last 30 days are listed with inputs and outputs, at api.fal.ai: a submit whose answer was
  lost is found there, and an image that the queue has forgotten.
- Billing events say what each request was charged: to an admin key (FAL_ADMIN_KEY, or FAL_KEY if it is one),
  at most 50 requests or 90 days per question.
- Images come from fal.media.

From fal's queue reference and its Python client. Not confirmed against the live service: the largest size,
``X-Fal-Error-Type``, that an exhausted balance always comes as 403 with that word, that the synchronous
form gives PNG data URIs for this model, and how soon after its end a request is listed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import anyio
import httpx
from pydantic import Field, HttpUrl, PrivateAttr

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.billing import BillingEvent
from imagemill.blocks.apis.error_codes import CANCELLED
from imagemill.blocks.apis.exchange import (
    fetch,
    follow,
    objects_at,
    parsed,
    text_at,
    unexpected_answer,
)
from imagemill.blocks.apis.generated_image import Accepted, GeneratedImage, ImageSource
from imagemill.blocks.apis.past_requests import MOST_PAGES, PastRequest
from imagemill.blocks.apis.queued import OnState, QueuedApi
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.request_watch import RequestState

_PLATFORM = "https://api.fal.ai"
_AT_ONCE = "https://fal.run"
_BILLED_DAYS = timedelta(days=90)
_MOST_BILLED = 1_000
"""The most pages of charges that are read, of 10,000 each."""

_STATES = {
    "IN_QUEUE": RequestState.QUEUED,
    "IN_PROGRESS": RequestState.IN_PROGRESS,
    "COMPLETED": RequestState.COMPLETED,
}


class Fal(QueuedApi):
    """FLUX.1 [schnell] at fal, through its queue: what is submitted once is never paid twice.

    Example:
        ```python
        from imagemill.blocks.apis import Fal

        Fal(api_key="...").save("fal")
        api = Fal.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: fal"
    _block_type_slug = "imagemill-fal"
    _description = "Images from fal: FLUX.1 [schnell], or any other model there."
    _logo_url = HttpUrl("https://github.com/fal-ai.png")
    _documentation_url = HttpUrl("https://fal.ai/models/fal-ai/flux/schnell/api")

    provider: ClassVar[str] = "fal"
    key_variable: ClassVar[str] = "FAL_KEY"
    authorization: ClassVar[tuple[str, str]] = ("authorization", "Key {key}")
    default_base_url: ClassVar[str] = "https://queue.fal.run"
    default_model: ClassVar[str] = "fal-ai/flux/schnell"
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("fal.media", "fal.ai", "fal.run")

    queued: bool = Field(
        default=True,
        description="Use fal's queue, where a lost answer costs nothing; otherwise fal.run, one request an"
        " image.",
    )

    list_kept: ClassVar[timedelta] = timedelta(days=30)
    admin_key_variable: ClassVar[str] = "FAL_ADMIN_KEY"

    _streams: bool = PrivateAttr(default=True)

    def model_post_init(self, context: object, /) -> None:
        """The synchronous form has its own host."""
        if not self.queued:
            self.base_url = self.base_url or _AT_ONCE
        super().model_post_init(context)

    def endpoint(self, job: Job) -> str:
        return f"{self.base_url}/{job.model}"

    def body(self, job: Job) -> dict[str, Any]:
        fields = self.fields(job)
        return fields if self.queued else {**fields, "sync_mode": True}

    def read(self, answer: dict[str, Any]) -> ImageSource:
        link = text_at(answer, "images", 0, "url")
        if link is None:
            raise unexpected_answer(answer)
        flags = answer.get("has_nsfw_concepts")
        return ImageSource(link, flagged=isinstance(flags, list) and True in flags)

    async def look_up(self, http: httpx.AsyncClient) -> str:
        query = urlencode({"endpoint_id": self.model})
        await self.question(http, f"{self._platform}/v1/models/pricing?{query}")
        return f"{self.model} has a price"

    def handle_of(self, answer: dict[str, Any]) -> str | None:
        return text_at(answer, "request_id")

    def look_url(self, handle: str) -> str:
        # The documented place: the application without its sub-path. The links in an answer say the
        # same; the key is not sent to wherever a link may point.
        application = "/".join(self.model.split("/")[:2])
        return f"{self.base_url}/{application}/requests/{quote(handle, safe='')}"

    async def generate(self, http: httpx.AsyncClient, job: Job, accepted: Accepted) -> GeneratedImage:
        """Make one image, through the queue or at once."""
        if self.queued:
            return await super().generate(http, job, accepted)
        return await ImageApi.generate(self, http, job, accepted)

    async def past_requests(
        self, http: httpx.AsyncClient, since: datetime, *, most_pages: int = MOST_PAGES
    ) -> AsyncIterator[PastRequest]:
        if not self.queued:
            return  # the results of the synchronous form are not kept
        query = {"endpoint_id": self.model, "start": since.isoformat(), "expand": "payloads", "limit": "100"}
        async for page in self._pages(http, "requests/by-endpoint", query, most_pages):
            for item in objects_at(page, "items"):
                status = item.get("status_code")
                failed = isinstance(status, int) and status >= 400
                handle = text_at(item, "request_id") or ""
                yield PastRequest(handle, item.get("json_input"), failed, item.get("json_output"))

    async def billing_events(
        self, http: httpx.AsyncClient, since: datetime, until: datetime, request_ids: Sequence[str] = ()
    ) -> AsyncIterator[BillingEvent]:
        while since < until:
            end = min(until, since + _BILLED_DAYS)
            query = {"endpoint_id": self.model, "start": since.isoformat(), "end": end.isoformat()}
            query |= {"request_id": ",".join(request_ids)} if request_ids else {}
            async for page in self._pages(http, "billing-events", query | {"limit": "10000"}, _MOST_BILLED):
                for item in objects_at(page, "billing_events"):
                    yield _billed(item)
            since = end

    async def _pages(
        self, http: httpx.AsyncClient, what: str, query: Mapping[str, str], most: int
    ) -> AsyncIterator[dict[str, Any]]:
        """The first pages of a list at fal's platform."""
        asked = dict(query)
        for _ in range(most):
            async with self.attempt():
                page = await self.ask(http, f"{self._platform}/v1/models/{what}?{urlencode(asked)}")
            yield page
            cursor = text_at(page, "next_cursor")
            if not cursor or not page.get("has_more"):
                return
            asked["cursor"] = cursor

    @property
    def _platform(self) -> str:
        """Where prices, past requests and charges are: fal's platform, or the address in its place."""
        return _PLATFORM if self.base_url in {self.default_base_url, _AT_ONCE} else self.base_url

    @property
    def queues(self) -> bool:
        """The queue takes every request; only the synchronous form refuses."""
        return self.queued

    @property
    def lists_requests(self) -> bool:
        return self.queued

    def is_paid(self, request_id: str | None) -> bool:
        """The synchronous form's links are paid; a request of the queue only where it is marked so."""
        return super().is_paid(request_id) if self.queued else ImageApi.is_paid(self, request_id)

    def state_of(self, answer: dict[str, Any]) -> RequestState | None:
        return _STATES.get(text_at(answer, "status") or "")

    async def follow_states(self, http: httpx.AsyncClient, handle: str, on_state: OnState) -> bool:
        """Follow the request's states, which fal sends as server-sent events, until it is completed."""
        if not self._streams:
            return False

        def completed(event: bytes) -> bool:
            try:
                return self.report(parsed(event), on_state) is RequestState.COMPLETED
            except ApiError:
                return False

        try:
            status, over = await follow(
                http, f"{self.look_url(handle)}/status/stream", headers=self.headers, until=completed
            )
            if status == 404:  # no streams here, or a queue that has not heard of its own request yet
                await self.ask(http, f"{self.look_url(handle)}/status")
        except httpx.TransportError:
            return False  # the request itself goes on, and is polled instead
        except ApiError:
            return False
        self._streams = status not in {404, 405, 501}  # a server in fal's place without streams
        return over

    async def look(
        self, http: httpx.AsyncClient, handle: str, on_state: OnState, *, over: bool = False
    ) -> ImageSource | None:
        """Ask for the status; once it is completed, for the result, where an error is the request's own."""
        url = self.look_url(handle)
        if not over:
            answer = await self.ask(http, f"{url}/status")
            state = self.report(answer, on_state)
            if state is None:
                raise unexpected_answer(answer)
            if state is not RequestState.COMPLETED:
                return None
        code, headers, body = await fetch(http, "GET", url, headers=self.headers)
        if code == 200:
            return self.source_in(parsed(body))
        if code in {404, 408, 410, 429, 502, 503, 504}:
            raise self.look_error(code, headers, body)
        # The generation itself ended in an error: a retry must be a new request.
        raise self.error_of(code, headers, body)

    async def withdraw(self, http: httpx.AsyncClient, handle: str) -> bool:
        """Cancel the request if it waits; fal would cancel one in progress as well, which may yet be billed.

        What ended as cancelled was free only if it cannot have begun since it was seen to wait.
        """
        url, asked_at = self.look_url(handle), anyio.current_time()
        if self.state_of(await self.ask(http, f"{url}/status")) is not RequestState.QUEUED:
            return False
        code, _, _ = await fetch(http, "PUT", f"{url}/cancel", headers=self.headers)
        is_certain = code == 202 and anyio.current_time() - asked_at < self.typical_latency_s
        answer = await self.ask(http, f"{url}/status") if is_certain else {}
        state = self.state_of(answer)
        return state is RequestState.QUEUED or (state is RequestState.COMPLETED and "error" in answer)

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """The error that an answer stands for, its code from fal's own header."""
        error = super().error_of(status, headers, body)
        if status == 499:
            # It may have been in progress then, and be billed.
            return ApiError(ErrorClass.TIMEOUT, "the request was cancelled", code=CANCELLED, doubtful=True)
        if error_type := headers.get("x-fal-error-type"):
            error.code = self.clean(error_type)[:60]
        return error


def _billed(item: dict[str, Any]) -> BillingEvent:
    """A charge in fal's list: in whole billionths of a dollar if it has them, else in dollars."""
    name = text_at(item, "request_id")
    for field, parts in (("cost_estimate_nano_usd", 1_000_000_000), ("cost_total", 1)):
        amount = item.get(field)
        if name and isinstance(amount, int | float) and not isinstance(amount, bool):
            return BillingEvent(name, Decimal(str(amount)) / parts)
    raise unexpected_answer(item)
