"""fal: queued. Submit, ask for the status, fetch the result, download the image.

Wire facts from fal's queue reference and its Python client. Not confirmed against the live service: the
largest size, and that an exhausted balance always comes as 403 with that word.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import anyio
import httpx
from pydantic import HttpUrl, PrivateAttr

from blocks.apis.base import (
    Accepted,
    GeneratedImage,
    ImageApi,
    SizeLimits,
    fetch,
    parsed,
    unexpected_answer,
    whole_megapixels,
    words_of,
)
from blocks.errors import ApiError, ErrorClass
from blocks.jobs import Job


class Fal(ImageApi):
    """FLUX.1 [schnell] at fal, through its queue: what is submitted once is never paid twice.

    Example:
        ```python
        from blocks.apis import Fal

        Fal(api_key="...").save("fal")
        ```
    """

    _block_type_name = "Image API: fal"
    _block_type_slug = "imagemill-fal"
    _description = "An account at fal that makes FLUX.1 [schnell] images."
    _documentation_url = HttpUrl("https://fal.ai/models/fal-ai/flux/schnell/api")

    provider: ClassVar[str] = "fal"
    key_variable: ClassVar[str] = "FAL_KEY"
    default_base_url: ClassVar[str] = "https://queue.fal.run"
    default_model: ClassVar[str] = "fal-ai/flux/schnell"
    default_usd_per_megapixel: ClassVar[float] = 0.003
    sizes: ClassVar[SizeLimits] = SizeLimits(smallest=64, largest=2048, multiple=1, most_steps=12)
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("fal.media", "fal.ai", "fal.run")

    _typical_s: float = PrivateAttr(default=0.5)

    def billed_megapixels(self, width: int, height: int) -> float:
        """Fal rounds up to whole megapixels."""
        return whole_megapixels(width, height)

    async def generate(self, http: httpx.AsyncClient, job: Job, accepted: Accepted) -> GeneratedImage:
        """Submit, unless the job has a request id already; then wait for it and fetch the image."""
        if job.request_id is None:
            async with self.attempt():
                request_id = await self._submit(http, job)
            await accepted(request_id)
        else:
            request_id = job.request_id
        async with self.attempt(keep_request=True):
            await self._completed(http, request_id)
            result = await self._result(http, request_id)
            flagged = any(flag is True for flag in result.get("has_nsfw_concepts") or [])
            content = await self._content(http, request_id, result)
        return GeneratedImage(
            content, self.price_usd(job.width, job.height), flagged=flagged, request_id=request_id
        )

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Key {self.api_key.get_secret_value()}"}

    def _request_url(self, request_id: str) -> str:
        # The documented place: the application without its sub-path. The links in an answer say the
        # same; the key is not sent to wherever a link may point.
        application = "/".join(self.model.split("/")[:2])
        return f"{self.base_url}/{application}/requests/{quote(request_id, safe='')}"

    async def _submit(self, http: httpx.AsyncClient, job: Job) -> str:
        status, headers, body = await fetch(
            http,
            "POST",
            f"{self.base_url}/{job.model}",
            headers=self._headers,
            json={
                "prompt": job.prompt,
                "image_size": {"width": job.width, "height": job.height},
                "num_inference_steps": job.steps,
                "seed": job.seed,
                "num_images": 1,
                "enable_safety_checker": True,
                "output_format": job.format,
            },
        )
        if status not in {200, 201, 202}:
            raise self.error_of(status, headers, body)
        request_id = parsed(body).get("request_id")
        if not isinstance(request_id, str) or not 0 < len(request_id) <= 200:
            raise unexpected_answer(body)
        return request_id

    async def _completed(self, http: httpx.AsyncClient, request_id: str) -> None:
        """Wait until the request is completed; the first look comes when most are."""
        begun = anyio.current_time()
        url = f"{self._request_url(request_id)}/status"
        wait = 0.7 * self._typical_s
        while True:
            await anyio.sleep(wait)
            status, headers, body = await fetch(http, "GET", url, headers=self._headers)
            if status not in {200, 202}:
                raise self._lookup_error(status, headers, body)
            state = parsed(body).get("status")
            if state == "COMPLETED":
                waited = anyio.current_time() - begun
                self._typical_s += 0.05 * (min(waited, 30.0) - self._typical_s)
                return
            if state not in {"IN_QUEUE", "IN_PROGRESS"}:
                raise unexpected_answer(body)
            wait = min(max(0.2 * self._typical_s, 0.02), 2.0)

    async def _result(self, http: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
        status, headers, body = await fetch(http, "GET", self._request_url(request_id), headers=self._headers)
        if status == 200:
            return parsed(body)
        if status in {408, 429, 502, 503, 504}:
            raise self._lookup_error(status, headers, body)
        # The generation itself ended in an error: a retry must be a new request.
        raise self.error_of(status, headers, body)

    async def _content(self, http: httpx.AsyncClient, request_id: str, result: dict[str, Any]) -> bytes:
        link = _link(result)
        if link.startswith("data:"):
            _, _, encoded = link.partition(";base64,")
            try:
                return binascii.a2b_base64(encoded)
            except (binascii.Error, ValueError):
                raise ApiError(
                    ErrorClass.INVALID_IMAGE, "the image is not valid base64", charged=True
                ) from None
        try:
            return await self.download(http, link)
        except ApiError as error:
            if error.code != "image_link":
                raise
        # An expired link: the result gives a fresh one, free of charge.
        return await self.download(http, _link(await self._result(http, request_id)))

    def _lookup_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """An error met while asking about a request: it is still there, unless fal says it is not."""
        error = self.error_of(status, headers, body)
        if status == 404:
            return ApiError(ErrorClass.TIMEOUT, "fal does not know the request any more", code="request_gone")
        error.keep_request = True
        return error

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """Fal's errors: an exhausted balance is told from a refused key by its words."""
        error = super().error_of(status, headers, body)
        words = words_of(body).lower()
        if status == 403 and ("balance" in words or "locked" in words):
            error.error_class = ErrorClass.OUT_OF_BUDGET
        elif status == 422 and (b"content_policy" in body or "nsfw" in words):
            error.error_class = ErrorClass.CONTENT_FILTERED
        if error_type := headers.get("x-fal-error-type"):
            error.code = self.clean(error_type)[:60]
        return error


def _link(result: dict[str, Any]) -> str:
    try:
        link = result["images"][0]["url"]
    except (KeyError, IndexError, TypeError):
        link = None
    if not isinstance(link, str):
        raise unexpected_answer(repr(result)[:80].encode())
    return link
