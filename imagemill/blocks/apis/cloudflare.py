"""Cloudflare Workers AI: synchronous, the image in the answer as base64.

- Authorization: ``Bearer TOKEN``, from CLOUDFLARE_API_TOKEN. The account's id is part of the address: from
  CLOUDFLARE_ACCOUNT_ID, the block or ``--account``.
- FLUX.1 [schnell] takes a prompt of at most 2,048 characters and 1 to 8 steps: no size, no seed, no format.
  Every picture is a JPEG of 1024 x 1024. Seeds are part of a picture's key, but decide nothing.
- Errors: ``{"success": false, "errors": [{code, message}]}``. 429 is either 3040, no capacity, or 3036, the
  day's free neurons are used up.
- Old requests cannot be asked about: an answer that was lost may have been paid.

From Cloudflare's documentation, 2026-11-25. Not confirmed against the live service: size and format.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self
from urllib.parse import quote

import httpx
from pydantic import Field, HttpUrl

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.exchange import objects_at, text_at, unexpected_answer
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.errors import ApiError, ErrorClass, InputError
from imagemill.jobs import Job

_ACCOUNT_VARIABLE = "CLOUDFLARE_ACCOUNT_ID"
_LONGEST_PROMPT = 2048


class Cloudflare(ImageApi):
    """FLUX.1 [schnell] at Cloudflare Workers AI: one size, no seed, a free share each day.

    Example:
        ```python
        from imagemill.blocks.apis import Cloudflare

        Cloudflare(api_key="...", account="...").save("cloudflare")
        api = Cloudflare.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: Cloudflare Workers AI"
    _block_type_slug = "imagemill-cloudflare"
    _description = "Images from Cloudflare Workers AI: FLUX.1 [schnell]."
    _logo_url = HttpUrl("https://github.com/cloudflare.png")
    _documentation_url = HttpUrl("https://developers.cloudflare.com/workers-ai/models/flux-1-schnell/")

    provider: ClassVar[str] = "cloudflare"
    key_variable: ClassVar[str] = "CLOUDFLARE_API_TOKEN"
    default_base_url: ClassVar[str] = "https://api.cloudflare.com"
    default_model: ClassVar[str] = "@cf/black-forest-labs/flux-1-schnell"
    version: ClassVar[str] = "/client/v4"
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg"})
    names_errors: ClassVar[bool] = True
    notice: ClassVar[str] = (
        "Cloudflare takes neither size nor seed: every image is a JPEG of 1024 x 1024, and a row made again"
        " is another picture."
    )

    account: str = Field(
        default="", pattern="^[A-Za-z0-9_-]*$", description="The account's id, from Cloudflare's dashboard."
    )

    @classmethod
    def from_environment(cls, **settings: Any) -> Self:  # noqa: ANN401 - the block's own fields
        """The account whose token and id lie in the environment."""
        settings["account"] = settings.get("account") or os.environ.get(_ACCOUNT_VARIABLE, "").strip()
        if not settings["account"] and "/accounts/" not in settings.get("base_url", ""):
            raise InputError(
                f"There is no account id for cloudflare: set the environment variable {_ACCOUNT_VARIABLE}"
                " or give --account."
            )
        return super().from_environment(**settings)

    def endpoint(self, job: Job) -> str:
        account = "" if "/accounts/" in self.base_url else f"/accounts/{self.account}"
        return self.address(f"{account}/ai/run/{job.model}")

    def body(self, job: Job) -> dict[str, Any]:
        if len(job.prompt) > _LONGEST_PROMPT:
            reason = f"the prompt has {len(job.prompt):,} characters; Cloudflare takes {_LONGEST_PROMPT:,}"
            raise ApiError(ErrorClass.BAD_REQUEST, reason, code="prompt_too_long")
        return self.fields(job)

    async def look_up(self, http: httpx.AsyncClient) -> str:
        account = "" if "/accounts/" in self.base_url else f"/accounts/{self.account}"
        name = quote(self.model.rpartition("/")[2])
        found = await self.question(http, self.address(f"{account}/ai/models/search?search={name}"))
        names = [model.get("name") for model in objects_at(found, "result")]
        if self.model not in names and self.base_url == self.default_base_url:
            raise self.no_such_model()
        return f"{self.model} is listed" if self.model in names else "the token is accepted"

    def read(self, answer: dict[str, Any]) -> ImageSource:
        found = text_at(answer, "result", "image")
        if found is None:
            raise unexpected_answer(answer)
        return ImageSource(found)
