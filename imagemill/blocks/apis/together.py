"""Together: synchronous, the image in the answer.

- Authorization: ``Bearer KEY``, from TOGETHER_API_KEY.
- Sizes from 64 to 1,792 pixels in multiples of 16; 1 to 12 steps. Formats: jpeg, png. Seeds are used.
  There is a ``negative_prompt``, but FLUX.1 [schnell] is distilled and ignores it: it is not sent, and not
  part of a picture's key.
- Errors: ``{"error": {message, type, param, code}}``. The rate is dynamic: 429 above it, with Retry-After
  where the wait is known, and 503 below it where capacity lacks, which means slower and never down.
  Rate-limit headers are not read, only Retry-After (or the same in the error's words): a reset in
  ``x-ratelimit-*`` is when the whole allowance is back, not when the next request may be sent. 402: no
  credit. A moderation error is recognized by its words.
- Old requests cannot be asked about: an answer that was lost may have been paid.
- Images come in the answer; links, which are not asked for, would point to Together's own hosts.

From Together's API reference and its Python client (which goes to api.together.ai by now). Not confirmed
against the live service: that sizes are multiples of 16 up to 1,792, the limit of 12 steps, the headers of a
429, and a moderation error's wording.
"""

from __future__ import annotations

from typing import Any, ClassVar

import httpx
from pydantic import HttpUrl

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.exchange import objects_at
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.jobs import Job


class Together(ImageApi):
    """FLUX.1 [schnell] at Together: one request, and the answer holds the image.

    Example:
        ```python
        from imagemill.blocks.apis import Together

        Together(api_key="...").save("together")
        api = Together.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: Together"
    _block_type_slug = "imagemill-together"
    _description = "Images from Together: FLUX.1 [schnell], or another model there."
    _logo_url = HttpUrl("https://github.com/togethercomputer.png")
    _documentation_url = HttpUrl("https://docs.together.ai/reference/post-images-generations")

    provider: ClassVar[str] = "together"
    key_variable: ClassVar[str] = "TOGETHER_API_KEY"
    default_base_url: ClassVar[str] = "https://api.together.xyz"
    default_model: ClassVar[str] = "black-forest-labs/FLUX.1-schnell"
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ("together.xyz", "together.ai")

    # The documented base is one request per second, and the rate follows the past hour's use. Two cost an
    # account at the base about one refusal, and find a larger one's rate in half the time.
    first_per_s: ClassVar[float] = 2.0
    rate_moves: ClassVar[bool] = True

    def endpoint(self, job: Job) -> str:
        del job
        return self.address("/images/generations")

    def body(self, job: Job) -> dict[str, Any]:
        return {"model": job.model, **self.fields(job), "n": 1, "response_format": "base64"}

    async def look_up(self, http: httpx.AsyncClient) -> str:
        listed = await self.question(http, self.address("/models"))
        models = listed if isinstance(listed, list) else objects_at(listed, "data")
        named = any(isinstance(model, dict) and model.get("id") == self.model for model in models)
        if models and not named and self.base_url == self.default_base_url:
            raise self.no_such_model()
        return f"{self.model} is listed" if named else "the key is accepted"

    def read(self, answer: dict[str, Any]) -> ImageSource:
        return ImageSource.of_list(answer)
