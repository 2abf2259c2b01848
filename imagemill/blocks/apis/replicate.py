"""Replicate: predictions, submitted and polled; with ``wait_s`` the answer to the submit may hold the image.

- Authorization: ``Bearer TOKEN``, from REPLICATE_API_TOKEN.
- There is no width and height, only an ``aspect_ratio`` and ``megapixels``. What comes out is in
  the model's profile, each at "1" and at half the sides at "0.25". A row of another size is refused, with the
  nearest one named: a picture is never made in another size than was asked for. 1 to 4 steps.
- Formats: png, jpeg (called jpg), webp. Seeds are used, which is why ``go_fast`` is off: with it the model is
  quantized and a seed no longer decides the picture. A negative prompt is not taken.
- Errors: problem details ``{title, detail, status}``. 429: 600 submits a minute, far fewer when credit runs
  low; the wait is in Retry-After, or only in the words "resets in ~30s". 402: no credit. A prediction that
  failed says why in ``error``; what was flagged says "NSFW" or "flagged as sensitive".
- Old predictions can be asked about (their inputs and outputs for about an hour); looks have a limit of their
  own, 3,000 a minute. An expired link is not renewed: the image must be made again.
- Predictions are listed with their inputs, for about an hour: a submit whose answer was lost is found there.
- Images come from replicate.delivery.

From Replicate's API reference, its Python client and the model's public source. Not confirmed against the
live service: the sizes at "0.25", and the words of a flagged prediction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import Field, HttpUrl

from imagemill.blocks.apis.error_codes import CANCELLED
from imagemill.blocks.apis.exchange import fetch, objects_at, parsed, text_at, unexpected_answer
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.blocks.apis.past_requests import MOST_PAGES, PastRequest
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.request_watch import RequestState

_QUALITY = 90
_STATES = {
    "starting": RequestState.QUEUED,
    "processing": RequestState.IN_PROGRESS,
    "succeeded": RequestState.COMPLETED,
}
_FLAGGED_WORDS = ("nsfw", "flagged as sensitive", "content policy", "safety")


class Replicate(QueuedApi):
    """FLUX.1 [schnell] at Replicate: predictions, so what is submitted once is never paid twice.

    Example:
        ```python
        from imagemill.blocks.apis import Replicate

        Replicate(api_key="...").save("replicate")
        api = Replicate.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: Replicate"
    _block_type_slug = "imagemill-replicate"
    _description = "Images from Replicate: FLUX.1 [schnell], or any other model there."
    _logo_url = HttpUrl("https://github.com/replicate.png")
    _documentation_url = HttpUrl("https://replicate.com/black-forest-labs/flux-schnell/api")

    provider: ClassVar[str] = "replicate"
    key_variable: ClassVar[str] = "REPLICATE_API_TOKEN"
    default_base_url: ClassVar[str] = "https://api.replicate.com"
    default_model: ClassVar[str] = "black-forest-labs/flux-schnell"
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg", "webp"})
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("replicate.delivery", "replicate.com")

    wait_s: int = Field(
        default=0,
        ge=0,
        le=60,
        description="Let the submit wait so many seconds for the image. Saves polls, but an answer lost"
        " meanwhile is an image paid for and lost. 0: submit, then poll.",
    )

    @property
    def headers(self) -> dict[str, str]:
        if not self.wait_s:
            return super().headers
        # Shorter than the request's own time limit: the answer must come, or its id is lost.
        return {**super().headers, "prefer": f"wait={min(self.wait_s, int(self.request_timeout_s - 1) or 1)}"}

    def endpoint(self, job: Job) -> str:
        return self.address(f"/models/{quote(job.model)}/predictions")

    def body(self, job: Job) -> dict[str, Any]:
        if reason := self.refusal(job.width, job.height, job.steps):
            raise ApiError(ErrorClass.BAD_REQUEST, reason, code="size")
        fields = self.fields(job)
        if job.format != "png" and "output_quality" in self.profile.params:
            fields.setdefault("output_quality", _QUALITY)
        return {"input": fields}

    async def look_up(self, http: httpx.AsyncClient) -> str:
        await self.question(http, self.address(f"/models/{quote(self.model)}"))
        return f"{self.model} is there"

    def handle_of(self, answer: dict[str, Any]) -> str | None:
        return text_at(answer, "id")

    def look_url(self, handle: str) -> str:
        # Where urls.get points, too; the key is not sent to wherever a link may point.
        return self.address(f"/predictions/{quote(handle, safe='')}")

    def input_of(self, job: Job) -> dict[str, Any]:
        fields: dict[str, Any] = self.body(job)["input"]
        return fields

    async def past_requests(
        self, http: httpx.AsyncClient, since: datetime, *, most_pages: int = MOST_PAGES
    ) -> AsyncIterator[PastRequest]:
        url = self.address(f"/predictions?{urlencode({'created_after': since.isoformat()})}")
        for _ in range(most_pages):
            async with self.attempt():
                page = await self.ask(http, url)
            for item in objects_at(page, "results"):
                if item.get("model") == self.model:
                    failed = text_at(item, "status") in {"failed", "canceled", "aborted"}
                    yield PastRequest(text_at(item, "id") or "", item.get("input"), failed)
            url = text_at(page, "next") or ""
            if not self.is_own_address(url):
                return

    def state_of(self, answer: dict[str, Any]) -> RequestState | None:
        return _STATES.get(text_at(answer, "status") or "")

    async def withdraw(self, http: httpx.AsyncClient, handle: str) -> bool:
        url = self.look_url(handle)
        if self.state_of(await self.ask(http, url)) is not RequestState.QUEUED:
            return False  # what has begun may still come home
        code, _, body = await fetch(http, "POST", f"{url}/cancel", headers=self.headers)
        ended = parsed(body) if code == 200 else {}
        free = ended.get("started_at") is None  # else its time until then is charged
        return free and text_at(ended, "status") in {"canceled", "aborted"}

    @property
    def lists_requests(self) -> bool:
        return True

    def read_at_once(self, answer: dict[str, Any]) -> ImageSource | None:
        return self.source_in(answer) if self.wait_s else None

    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        link = text_at(answer, "output", 0) or text_at(answer, "output")
        match answer.get("status"):
            case "succeeded" if link:
                return ImageSource(link)
            case "succeeded" if answer.get("data_removed") is True:
                raise ApiError(
                    ErrorClass.INVALID_IMAGE,
                    "Replicate keeps an image for an hour, and has removed this one",
                    code="image_link_expired",
                    charged=True,
                )
            case "starting" | "processing":
                # An answer that waited may hold the output before its status says so.
                return ImageSource(link) if link else None
            case "canceled" | "aborted" as status:
                begun = answer.get("started_at") is not None  # then its time is charged
                words = f"the prediction was {status}"
                raise ApiError(ErrorClass.SERVER_ERROR, words, code=CANCELLED, doubtful=begun)
            case "failed":
                words = self.clean(str(answer.get("error") or "failed"))
                flagged = any(word in words.lower() for word in _FLAGGED_WORDS)
                error_class = ErrorClass.CONTENT_FILTERED if flagged else ErrorClass.SERVER_ERROR
                raise ApiError(error_class, words, code="prediction_failed")
        raise unexpected_answer(answer)
