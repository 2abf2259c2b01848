"""The wire format that OpenAI made common: `POST .../images/generations` with `size`.

Two kinds of server answer here. For a GPT image model, OpenAI itself; confirmed by the client `openai` 3.57.0
(types of images, read 2026-11-25):

- `response_format`, `style` and every field that is not OpenAI's are refused: 400, unknown_parameter. The
  picture is always base64.
- Sizes: gpt-image-2 and later any WIDTHxHEIGHT by 16, between 1:3 and 3:1, from 655,360 pixels to 3840x2160;
  older ones 1024x1024, 1536x1024, 1024x1536. `quality`, `background` (transparent only as png or webp),
  `output_format`.
- The answer repeats them and counts `usage` in tokens, by which it is billed.
- gpt-image-1, dall-e-2 and dall-e-3 are gone.

For any other model, a server of one's own: it takes any model, `response_format`, and seed and steps beyond
the standard. Together has the same path: :func:`speaks_openai` tells the two apart by their fields. Other
hosts put it below a path of their own, such as DeepInfra's /v1/openai.

Tokens of a picture are those of OpenAI's image generation guide for gpt-image-2, and their price is that of
LiteLLM's list. Unconfirmed: tokens at sizes that the guide does not name (here in proportion to the pixels)
and of other models, and the status of a model that is gone.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer, parse_object
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.gallery import spoil
from imagemill.emulator.order import Order
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.studio import Ticket

__all__ = ["OpenAI", "speaks_openai"]

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SIDES = range(64, 4097)
_FREE_SIDES = range(16, 3841, 16)
_PIXELS = range(655_360, 3840 * 2160 + 1)
_WIDEST = 3
_GPT = re.compile(r"gpt-image-|chatgpt-image-|dall-e-")
_GONE = frozenset({"gpt-image-1", "dall-e-2", "dall-e-3"})
_FIXED = re.compile(r"gpt-image-1(?!\d)|chatgpt-image-")
_FIXED_SIZES = ("1024x1024", "1536x1024", "1024x1536")
_GPT_FIELDS = frozenset(
    {"model", "prompt", "n", "size", "quality", "background", "output_format", "output_compression"}
    | {"moderation", "stream", "partial_images", "user", "safety_identifier", "complexity"}
)
_TOKENS = {"low": 196, "medium": 1756, "high": 7024, "xhigh": 7024, "max": 7024}
_OBLONG_TOKENS = {"low": 158, "medium": 1372, "high": 5488, "xhigh": 5488, "max": 5488}
_BACKGROUNDS = ("auto", "opaque", "transparent")
_MESSAGES = {
    400: ("The request is invalid.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    402: ("The credit of the account is exhausted.", "insufficient_quota", "insufficient_quota"),
    413: ("The request body is too large.", "invalid_request_error", None),
    429: ("Rate limit reached. Please try again later.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error.", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded.", "server_error", None),
    504: ("The request timed out.", "server_error", None),
}
_REJECTED = "Your request was rejected by the safety system."


def speaks_openai(body: bytes) -> bool:
    """Say whether the body of a request has fields, or a model, that only OpenAI's API knows."""
    fields = parse_object(body) or {}
    return "size" in fields or fields.get("response_format") == "b64_json" or _is_gpt(fields.get("model"))


def _is_gpt(model: object) -> bool:
    return isinstance(model, str) and _GPT.match(model) is not None


class OpenAI(Vendor):
    """Answers like OpenAI, or like a server of FLUX.1 [schnell] that speaks OpenAI's image API."""

    async def generate(self, request: Request, body: bytes | None = None) -> Response:
        """Answer a generation request."""
        ticket = await self.take(request, body)
        answer = ticket if isinstance(ticket, Response) else await self._answer(request, ticket)
        bucket = self.studio.limits.bucket
        if bucket is not None and answer.status_code != 401:
            now = self.studio.now()
            answer.headers["x-ratelimit-limit-requests"] = str(bucket.burst)
            answer.headers["x-ratelimit-remaining-requests"] = str(bucket.remaining(now))
            answer.headers["x-ratelimit-reset-requests"] = f"{bucket.reset(now):.3f}s"
        return answer

    async def _answer(self, request: Request, ticket: Ticket) -> Response:
        studio, fault, order = self.studio, ticket.fault, ticket.order
        if fault == "fail":
            studio.release(ticket)
            return self.error(500)
        if fault == "flagged":
            studio.release(ticket)
            code = "moderation_blocked" if _is_gpt(order.model) else "content_policy_violation"
            return _refused(400, _REJECTED, "prompt", code)
        images = await studio.produce(ticket)
        if images is None or fault == "timeout_after_charge":
            return studio.hang()
        by_link = not _is_gpt(order.model) and ticket.asked.get("response_format") != "b64_json"
        if by_link:
            data = [{"url": studio.links.mint(request, shot, fault).url} for shot in order.shots(fault)]
        else:
            data = [{"b64_json": base64_text(spoil(image, fault)).decode()} for image in images]
        told = _told(ticket) if _is_gpt(order.model) else {}
        answer = json_answer({"created": int(time.time()), **told, "data": data})
        return Cut(studio.connections, answer) if fault == "reset_body" and not by_link else answer

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        del request
        model = fields.get("model")
        if not isinstance(model, str) or not model.strip():
            message = "you must provide a model parameter"
            raise FieldError("model", message)
        tokens = 0
        if _is_gpt(model):
            width, height = _gpt_size(model, fields)
            tokens = _tokens(width, height, _gpt_quality(fields))
        else:
            width, height = _size(fields)
        seed = None if fields.get("seed") is None else whole(fields, "seed", 0, SEEDS)
        steps = "num_inference_steps" if "num_inference_steps" in fields else "steps"
        return Order(
            provider="openai",
            model=model,
            prompt=prompt_of(fields),
            width=width,
            height=height,
            steps=whole(fields, steps, 4, range(1, 51)),
            seed=seed,
            drawn_seed=self.studio.draw_seed() if seed is None else seed,
            format=picture_format(fields, "png", ("png", "jpeg", "webp")),
            count=whole(fields, "n", 1, range(1, 11)),
            tokens=tokens,
        )

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        message, kind, code = _MESSAGES.get(status, _MESSAGES[400])
        error = {"message": detail or message, "type": kind, "param": None, "code": code}
        return json_answer({"error": error}, status, headers)

    def invalid(self, error: FieldError) -> Response:
        status = 404 if error.code == "model_not_found" else 400
        return _refused(status, str(error), error.name or None, error.code)


def _refused(status: int, message: str, param: str | None, code: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return json_answer({"error": error}, status)


def _size(fields: dict[str, Any]) -> tuple[int, int]:
    """Return width and height in pixels, as a server of one's own takes them."""
    choice(fields, "response_format", "url", ("url", "b64_json"))
    size = fields.get("size")
    found = _SIZE.fullmatch("1024x1024" if size in {None, "auto"} else str(size))
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if width not in _SIDES or height not in _SIDES:
        message = f"Invalid size: sides are from {_SIDES[0]} to {_SIDES[-1]} pixels, as in 1024x1024."
        raise FieldError("size", message)
    return width, height


def _gpt_size(model: str, fields: dict[str, Any]) -> tuple[int, int]:
    """Return width and height in pixels, once the fields are OpenAI's and the model lives."""
    if model in _GONE:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise FieldError("model", message, "model_not_found")
    for name in fields:
        if name not in _GPT_FIELDS:
            message = f"Unknown parameter: '{name[:80]}'."
            raise FieldError(name, message, "unknown_parameter")
    size = fields.get("size")
    text = "1024x1024" if size in {None, "auto"} else str(size)
    found = _SIZE.fullmatch(text)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if _FIXED.match(model):
        fits = text in _FIXED_SIZES
    else:
        fits = width in _FREE_SIDES and height in _FREE_SIDES and width * height in _PIXELS
        fits = fits and max(width, height) <= _WIDEST * min(width, height)
    if not fits:
        message = f"Invalid value: '{text[:40]}'."
        raise FieldError("size", message, "invalid_value")
    return width, height


def _gpt_quality(fields: dict[str, Any]) -> str:
    quality = choice(fields, "quality", "auto", ("auto", *_TOKENS))
    background = choice(fields, "background", "auto", _BACKGROUNDS)
    if background == "transparent" and fields.get("output_format") == "jpeg":
        message = "Transparent background is not supported for JPEG output format."
        raise FieldError("background", message, "invalid_value")
    return "medium" if quality == "auto" else quality


def _tokens(width: int, height: int, quality: str) -> int:
    """Return the output tokens of one picture."""
    if f"{width}x{height}" in _FIXED_SIZES[1:]:
        return _OBLONG_TOKENS[quality]
    return -(-_TOKENS[quality] * width * height // 1024**2)


def _told(ticket: Ticket) -> dict[str, Any]:
    """Return what OpenAI's answer says of its pictures."""
    order, asked = ticket.order, ticket.asked
    text_tokens, image_tokens = order.text_tokens, order.tokens * order.count
    background = asked.get("background")
    return {
        "background": "transparent" if background == "transparent" else "opaque",
        "output_format": order.format,
        "quality": _gpt_quality(asked),
        "size": f"{order.width}x{order.height}",
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
            "output_tokens": image_tokens,
            "output_tokens_details": {"image_tokens": image_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + image_tokens,
        },
    }
