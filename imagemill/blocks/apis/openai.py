"""Any server that speaks OpenAI's ``/v1/images/generations``: one request, the image in the answer.

- Authorization: ``Bearer KEY``, from OPENAI_API_KEY. A server of your own that asks for no key still needs
  the variable set, to anything.
- The base URL may or may not end in ``/v1``.
- ``size`` is "WIDTHxHEIGHT": what a server takes beyond that is its own affair, so only the bounds of 64 to
  4,096 pixels are checked here. Formats: png, the standard's default, is not named in the request; jpeg and
  webp are, as ``output_format``.
- The standard knows no seed and no steps: they are part of a picture's key, but not sent. Where your server
  takes them, name its fields in ``extra_fields``. A negative prompt is neither sent nor part of the key.
- Errors: ``{"error": {message, type, param, code}}``. 429 with Retry-After is a rate limit, and 429 with the
  code insufficient_quota is an exhausted account. ``x-ratelimit-*`` headers set the pace; their reset is when
  the whole allowance is back, not when to send again. A refused prompt is a 400 with
  content_policy_violation or moderation_blocked.
- Old requests cannot be asked about: an answer that was lost may have been paid.
- Images come in the answer (``response_format`` b64_json); a link is followed only to the server itself, or
  to hosts in ``image_hosts``.

From OpenAI's API reference and its Python client, which marks ``response_format`` as one of older models: it
is what servers of FLUX.1 [schnell] understand. The price is a guess: set ``usd_per_image``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
from pydantic import Field, HttpUrl

from imagemill.blocks.apis.base import ImageApi, ImageSource
from imagemill.blocks.apis.exchange import text_at
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job

_EXHAUSTED = {"insufficient_quota", "billing_hard_limit_reached", "insufficient_credit"}
_MODERATED = {"content_policy_violation", "moderation_blocked", "content_filter"}


_OF_THE_JOB = ("{seed}", "{steps}")


class OpenAICompatible(ImageApi):
    """FLUX.1 [schnell] on a server that speaks OpenAI's image API, your own or a host's.

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
    _description = "A server that makes FLUX.1 [schnell] images and speaks OpenAI's image API."
    _documentation_url = HttpUrl("https://platform.openai.com/docs/api-reference/images/create")

    provider: ClassVar[str] = "openai"
    key_variable: ClassVar[str] = "OPENAI_API_KEY"
    default_base_url: ClassVar[str] = "https://api.openai.com"
    default_model: ClassVar[str] = "black-forest-labs/FLUX.1-schnell"
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg", "webp"})

    extra_fields: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Fields that your server takes beyond the standard. A value of {seed} or {steps} is"
        " replaced by the job's.",
        examples=[{"seed": "{seed}", "num_inference_steps": "{steps}"}],
    )

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
        return f"{self.base_url.removesuffix('/v1')}/v1/images/generations"

    def body(self, job: Job) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": job.model,
            "n": 1,
            "response_format": "b64_json",
            **self.fields(job),
        }
        own = {"{seed}": job.seed, "{steps}": job.steps}
        for name, value in self.extra_fields.items():
            body[name] = own.get(value, value) if isinstance(value, str) else value
        return body

    def read(self, answer: dict[str, Any]) -> ImageSource:
        return ImageSource.of_list(answer)

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """The standard's errors; its codes tell an exhausted account and a refused prompt from the rest."""
        error = super().error_of(status, headers, body)
        code = _code_of(body)
        if code in _EXHAUSTED:
            error.error_class = ErrorClass.OUT_OF_BUDGET
        elif code in _MODERATED:
            error.error_class = ErrorClass.CONTENT_FILTERED
        if code:
            error.code = self.clean(code)[:60]
        return error


def _code_of(body: bytes) -> str | None:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return text_at(answer, "error", "code") or text_at(answer, "error", "type")
