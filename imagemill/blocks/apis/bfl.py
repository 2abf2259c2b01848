"""Black Forest Labs, who made the model: submit and poll.

- Header ``x-key: KEY``, from BFL_API_KEY.
- Sizes from 256 to 1,440 pixels in multiples of 32. Steps are the model's own affair: a row's steps are part
  of a picture's key, but not sent. Formats: jpeg, png. Seeds are used; a negative prompt is not taken.
- FLUX.1 [schnell] itself may not be offered here (not confirmed); the default model is flux-dev, and any
  other name is sent as it is.
- Errors: ``{"detail": ...}``. 429: so many tasks at once (24, not confirmed), without a Retry-After. 402: no
  credit. 403: a key without permission. 503: maintenance or load. Moderation is a status of the task.
- Old tasks can be asked about, but only under the ``polling_url`` that the submit gave: it is what is stored
  as the job's request id. The key goes there only where its host is the API's own or below bfl.ai.
- The answer to a submit says what it costs, in credits of 0.01 USD: that is booked.
- Images come from hosts below bfl.ai, by signed links that live ten minutes and are not renewed.

From Black Forest Labs' API reference. Not confirmed against the live service: the number of tasks at once,
the status code of "Task not found" (200 and 404 are both read), and that moderated tasks are not charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import HttpUrl

from imagemill.blocks.apis.exchange import amount_of, text_at, unexpected_answer
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

_MODERATED = {"Request Moderated", "Content Moderated"}


class BlackForestLabs(QueuedApi):
    """FLUX at Black Forest Labs: tasks, so what is submitted once is never paid twice.

    Example:
        ```python
        from imagemill.blocks.apis import BlackForestLabs

        BlackForestLabs(api_key="...").save("bfl")
        api = BlackForestLabs.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: Black Forest Labs"
    _block_type_slug = "imagemill-bfl"
    _description = "Images from Black Forest Labs: the FLUX models, from their makers."
    _logo_url = HttpUrl("https://github.com/black-forest-labs.png")
    _documentation_url = HttpUrl("https://docs.bfl.ai/quick_start/generating_images")

    provider: ClassVar[str] = "bfl"
    key_variable: ClassVar[str] = "BFL_API_KEY"
    authorization: ClassVar[tuple[str, str]] = ("x-key", "{key}")
    default_base_url: ClassVar[str] = "https://api.bfl.ai"
    default_model: ClassVar[str] = "flux-dev"
    typical_latency_s: ClassVar[float] = 3.0
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("bfl.ai",)

    def endpoint(self, job: Job) -> str:
        return self.address(f"/{quote(job.model, safe='')}")

    def body(self, job: Job) -> dict[str, Any]:
        return self.fields(job)

    def told_usd(self, headers: Mapping[str, str], answer: Mapping[str, Any], job: Job) -> float | None:
        """``cost`` in the answer to a submit, in credits of 0.01 USD."""
        del headers, job
        credits_charged = amount_of(answer.get("cost"))
        return None if credits_charged is None else round(credits_charged / 100, 12)

    async def look_up(self, http: httpx.AsyncClient) -> str:
        answer = await self.question(http, self.address("/credits"))
        left = amount_of(answer.get("credits")) if isinstance(answer, dict) else None
        if left == 0:
            raise ApiError(ErrorClass.OUT_OF_BUDGET, "no credits are left", code="no_credits")
        return "the key is accepted" if left is None else f"{left:,.2f} credits are left"

    def handle_of(self, answer: dict[str, Any]) -> str | None:
        return text_at(answer, "polling_url")

    def look_url(self, handle: str) -> str:
        if not self._may_have_the_key(handle):
            raise ApiError(
                ErrorClass.BAD_REQUEST,
                self.clean(f"the polling link {handle[:100]!r} does not point to Black Forest Labs"),
                code="polling_host_refused",
                charged=True,
            )
        return handle

    def _may_have_the_key(self, url: str) -> bool:
        if self.is_own_address(url):
            return urlsplit(self.base_url).scheme != "https" or urlsplit(url).scheme == "https"
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port  # a port that is none is refused here
        except ValueError:
            return False
        return parts.scheme == "https" and (host == "bfl.ai" or host.endswith(".bfl.ai"))

    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        status = answer.get("status")
        link = text_at(answer, "result", "sample")
        if status == "Ready" and link:
            return ImageSource(link)
        if status in {"Pending", "Queued", "Processing"}:
            return None
        if status in _MODERATED:
            code = str(status).lower().replace(" ", "_")
            raise ApiError(ErrorClass.CONTENT_FILTERED, str(status), code=code)
        if status == "Task not found":
            raise self.request_gone()
        if status in {"Error", "Failed"}:
            words = self.clean(str(answer.get("details") or answer.get("result") or status))
            raise ApiError(ErrorClass.SERVER_ERROR, words, code="task_error")
        raise unexpected_answer(answer)
