"""Together: synchronous, the image in the answer.

Wire facts from Together's API reference and its Python client. Not confirmed against the live service:
that sizes are multiples of 16 up to 1,792, the price, and the wording of a moderation error.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx
from pydantic import HttpUrl

from blocks.apis.base import (
    Accepted,
    GeneratedImage,
    ImageApi,
    SizeLimits,
    fetch,
    parsed,
    unexpected_answer,
    words_of,
)
from blocks.errors import ApiError, ErrorClass
from blocks.jobs import Job

_MODERATION_WORDS = ("nsfw", "content policy", "content_policy", "moderation", "safety")


class Together(ImageApi):
    """FLUX.1 [schnell] at Together: one request, and the answer holds the image.

    Example:
        ```python
        from blocks.apis import Together

        Together(api_key="...").save("together")
        ```
    """

    _block_type_name = "Image API: Together"
    _block_type_slug = "imagemill-together"
    _description = "An account at Together that makes FLUX.1 [schnell] images."
    _documentation_url = HttpUrl("https://docs.together.ai/reference/post-images-generations")

    provider: ClassVar[str] = "together"
    key_variable: ClassVar[str] = "TOGETHER_API_KEY"
    default_base_url: ClassVar[str] = "https://api.together.xyz"
    default_model: ClassVar[str] = "black-forest-labs/FLUX.1-schnell"
    default_usd_per_megapixel: ClassVar[float] = 0.0027
    sizes: ClassVar[SizeLimits] = SizeLimits(smallest=64, largest=1792, multiple=16, most_steps=12)
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("together.xyz", "together.ai")

    async def generate(
        self,
        http: httpx.AsyncClient,
        job: Job,
        accepted: Accepted,  # noqa: ARG002 - nothing is queued here
    ) -> GeneratedImage:
        """Ask for one image and wait for it."""
        async with self.attempt():
            status, headers, body = await fetch(
                http,
                "POST",
                f"{self.base_url}/v1/images/generations",
                headers={"authorization": f"Bearer {self.api_key.get_secret_value()}"},
                json={
                    "model": job.model,
                    "prompt": job.prompt,
                    "width": job.width,
                    "height": job.height,
                    "steps": job.steps,
                    "seed": job.seed,
                    "n": 1,
                    "response_format": "base64",
                    "output_format": job.format,
                },
            )
            if status != 200:
                raise self.error_of(status, headers, body)
            answer = parsed(body)
            content = await self._content(http, answer, body)
        return GeneratedImage(content, self.price_usd(job.width, job.height))

    async def _content(self, http: httpx.AsyncClient, answer: dict[str, Any], body: bytes) -> bytes:
        try:
            item = answer["data"][0]
            encoded, link = item.get("b64_json"), item.get("url")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise unexpected_answer(body) from None
        if isinstance(encoded, str):
            try:
                return binascii.a2b_base64(encoded)
            except (binascii.Error, ValueError):
                raise ApiError(
                    ErrorClass.INVALID_IMAGE, "the image is not valid base64", charged=True
                ) from None
        if isinstance(link, str):
            return await self.download(http, link)
        raise unexpected_answer(body)

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """Together's errors; a moderation error is told from other bad requests by its words."""
        error = super().error_of(status, headers, body)
        words = words_of(body).lower()
        if error.error_class is ErrorClass.BAD_REQUEST and any(w in words for w in _MODERATION_WORDS):
            error.error_class = ErrorClass.CONTENT_FILTERED
        return error
