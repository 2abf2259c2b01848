"""OpenAI itself, and any server that speaks its ``/v1/images/generations``: one request, image in the answer.

- Authorization: ``Bearer KEY``, from OPENAI_API_KEY. A server of your own that asks for no key still needs
  the variable set, to anything.
- A base URL with a path is used as given: ``https://host/v1/openai`` is asked at
  ``/v1/openai/images/generations``. Only where it has none does ``/v1`` go in between.
- ``size`` is "WIDTHxHEIGHT"; a model's own sizes are in its profile. Formats: png, the standard's default, is
  not named in the request; jpeg and webp are, as ``output_format``.
- ``response_format`` b64_json keeps the image in the answer. GPT image models always answer so and refuse the
  field: it is not sent to them. LiteLLM's proxy refuses it for other models; a server that says so is asked
  again without it, at no cost, and from then on always. A link is followed only to the server itself, or to
  hosts in ``image_hosts``.
- The standard knows no seed and no steps: they are part of a picture's key, but not sent. Fields that your
  server or model takes beyond the standard (``seed``, ``num_inference_steps``, ``quality``) go by ``--param``
  or ``extra_fields``. A negative prompt is neither sent nor part of the key.
- Errors: ``{"error": {message, type, param, code}}``. Rate-limit headers are not read, only Retry-After (or
  the same in the error's words): a reset in ``x-ratelimit-*`` is when the whole allowance is back, not when
  to send again.
- The charge: LiteLLM's proxy says it in ``x-litellm-response-cost``; OpenAI counts tokens, which the
  model's profile prices.
- Old requests cannot be asked about: an answer that was lost may have been paid.

From OpenAI's API reference, its Python client and LiteLLM's source, 2026-11-25. Not confirmed against the
live service.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx
import orjson
from pydantic import Field, HttpUrl, PrivateAttr

from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.exchange import amount_of
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.models.listing import find_profile
from imagemill.models.price_rules import Price

_OF_THE_JOB = ("{seed}", "{steps}")


class OpenAICompatible(ImageApi):
    """OpenAI's GPT image models, or any model on a server that speaks OpenAI's image API.

    Example:
        ```python
        from imagemill.blocks.apis import OpenAICompatible

        OpenAICompatible(
            api_key="...",
            base_url="http://gpu.internal:8000/v1",
            model="black-forest-labs/FLUX.1-schnell",
            extra_fields={"seed": "{seed}", "num_inference_steps": "{steps}"},
            usd_per_image=0,
        ).save("our-gpu")
        api = OpenAICompatible.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Image API: OpenAI-compatible"
    _block_type_slug = "imagemill-openai"
    _description = "Images from OpenAI, or from any server that speaks its image API."
    _logo_url = HttpUrl("https://github.com/openai.png")
    _documentation_url = HttpUrl("https://platform.openai.com/docs/api-reference/images/create")

    provider: ClassVar[str] = "openai"
    key_variable: ClassVar[str] = "OPENAI_API_KEY"
    default_base_url: ClassVar[str] = "https://api.openai.com"
    default_model: ClassVar[str] = "black-forest-labs/FLUX.1-schnell"
    names_errors: ClassVar[bool] = True
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg", "webp"})

    extra_fields: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Fields that your server takes beyond the standard. A value of {seed} or {steps} is"
        " replaced by the job's.",
        examples=[{"seed": "{seed}", "num_inference_steps": "{steps}"}],
    )

    _names_response_format: bool = PrivateAttr(default=True)

    def model_post_init(self, context: object, /) -> None:
        """At OpenAI itself the default is one of its own models."""
        if not self.model and self.base_url in {"", self.default_base_url}:
            self.model = "gpt-image-2"
        super().model_post_init(context)

    @property
    def picture_model(self) -> str:
        """Further fields decide the picture, and so does the server that reads them.

        Not so the fields that only carry the job's seed or steps, which are in the key anyway.
        """
        own = {name: value for name, value in self.extra_fields.items() if value not in _OF_THE_JOB}
        if not own:
            return super().picture_model
        server = self.base_url.removesuffix("/v1")
        fields = orjson.dumps({"server": server, "fields": own}, option=orjson.OPT_SORT_KEYS)
        return f"{super().picture_model} {fields.decode()}"

    def endpoint(self, job: Job) -> str:
        del job
        return self.address("/images/generations")

    def address(self, path: str) -> str:
        """A path below the API's version; any path of the base URL is taken for that."""
        return f"{self.base_url}{path}" if urlsplit(self.base_url).path else super().address(path)

    def body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": job.model,
            "n": 1,
            **self.fields(job),
        }
        if self._names_response_format and not is_gpt_image(job.model):
            body["response_format"] = "b64_json"
        own = {"{seed}": job.take_seed, "{steps}": job.steps}
        for name, value in self.extra_fields.items():
            body[name] = own.get(value, value) if isinstance(value, str) else value
        return body

    async def look_up(self, http: httpx.AsyncClient) -> str:
        await self.question(http, self.address(f"/models/{quote(self.model)}"))
        return f"{self.model} is there"

    def read(self, answer: dict[str, Any]) -> ImageSource:
        return ImageSource.of_list(answer)

    async def post(self, http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
        """Send a generation request; once more without ``response_format`` where the server refuses that."""
        try:
            return await super().post(http, job)
        except ApiError as error:
            refused = error.error_class is ErrorClass.BAD_REQUEST and "response_format" in error.message
            if not refused or "response_format" not in self.body(job):
                raise
        self._names_response_format = False
        return await super().post(http, job)

    def told_usd(self, headers: Mapping[str, str], answer: Mapping[str, Any], job: Job) -> float | None:
        """The proxy's own figure, or what the tokens used cost."""
        reported = amount_of(headers.get("x-litellm-response-cost"))
        if reported is not None:
            return reported
        listed = find_profile(self.provider, job.model.rpartition("/")[2])
        return _usd_of_tokens(answer.get("usage"), listed.price) if listed and listed.price else None


def is_gpt_image(model: str) -> bool:
    """Whether a model is one of OpenAI's GPT image models, by its name, whichever host serves it."""
    return model.rpartition("/")[2].startswith(("gpt-image", "chatgpt-image"))


def _usd_of_tokens(usage: object, price: Price) -> float | None:
    """What the tokens of an answer cost, in USD; None if they are not counted or not what is charged for."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("input_tokens_details")
    read = details if isinstance(details, dict) else {}
    image_in = amount_of(read.get("image_tokens")) or 0.0
    text_in = amount_of(read.get("text_tokens"))
    if text_in is None:
        text_in = max(0.0, (amount_of(usage.get("input_tokens")) or 0.0) - image_in)
    image_out = amount_of(usage.get("output_tokens"))
    if image_out is None:
        return None
    usd = price.of_tokens(Decimal(text_in), Decimal(image_in), Decimal(image_out))
    return None if usd is None else float(usd)
