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
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer, parse_object
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.gallery import spoil
from imagemill.emulator.models import Model, find_model, models_of
from imagemill.emulator.order import Order
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.studio import Ticket

__all__ = ["OpenAI", "speaks_openai"]

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SIDES = range(64, 4097)
_MEASURED = "gpt-image-2"
"""The model whose tokens stand for those of models that the guide does not name."""
_GPT = re.compile(r"gpt-image-|chatgpt-image-|dall-e-")
_GONE = frozenset({"gpt-image-1", "dall-e-2", "dall-e-3"})
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
        if _is_gpt(model):
            return self._gpt_order(model, fields)
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
        )

    def _gpt_order(self, name: str, fields: dict[str, Any]) -> Order:
        """Return the order for one of OpenAI's own models.

        Raises:
            FieldError: The model is gone, or a field cannot be used.
        """
        model = find_model("openai", name)
        if model is None:
            message = f"The model `{name[:80]}` does not exist or you do not have access to it."
            raise FieldError("model", message, "model_not_found")
        for field in fields:
            if field not in model.schema["properties"]:
                message = f"Unknown parameter: '{field[:80]}'."
                raise FieldError(field, message, "unknown_parameter")
        if fields.get("background") == "transparent" and fields.get("output_format") == "jpeg":
            message = "Transparent background is not supported for JPEG output format."
            raise FieldError("background", message, "invalid_value")
        size = str(fields.get("size") or "auto")
        found = _SIZE.fullmatch("1024x1024" if size == "auto" else size)
        width, height = (int(found[1]), int(found[2])) if found else (0, 0)
        try:
            model.check_size(width, height, "size")
        except FieldError as error:
            error.code = "invalid_value"
            raise
        order = model.order(fields, self.studio.draw_seed(), (width, height))
        return replace(order, tokens=_tokens(model, width, height, _quality(fields)))

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


def _quality(fields: dict[str, Any]) -> str:
    quality = fields.get("quality") or "auto"
    return "medium" if quality == "auto" else str(quality)


def _tokens(model: Model, width: int, height: int, quality: str) -> int:
    """Return the output tokens of one picture: as listed, else in proportion to its pixels."""
    listed = model.facts.get("tokens") or models_of("openai")[_MEASURED].facts["tokens"]
    by_size = listed.get(quality, listed["high"])
    known: int | None = by_size.get(f"{width}x{height}")
    return -(-by_size["1024x1024"] * width * height // 1024**2) if known is None else known


def _told(ticket: Ticket) -> dict[str, Any]:
    """Return what OpenAI's answer says of its pictures."""
    order, asked = ticket.order, ticket.asked
    text_tokens, image_tokens = order.text_tokens, order.tokens * order.count
    background = asked.get("background")
    return {
        "background": "transparent" if background == "transparent" else "opaque",
        "output_format": order.format,
        "quality": _quality(asked),
        "size": f"{order.width}x{order.height}",
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
            "output_tokens": image_tokens,
            "output_tokens_details": {"image_tokens": image_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + image_tokens,
        },
    }
