"""The wire format that OpenAI made common: `POST /v1/images/generations` with `size`.

It stands for servers of FLUX.1 [schnell] that speak it, so it takes any model, and seed and steps beyond the
standard. Together has the same path: :func:`speaks_openai` tells the two apart by their fields.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer, parse_object
from imagemill.emulator.faults import STATUS
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.gallery import spoil
from imagemill.emulator.order import Order
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["OpenAI", "speaks_openai"]

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_SIDES = range(64, 2049)
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


def speaks_openai(body: bytes) -> bool:
    """Say whether the body of a request has fields that only OpenAI's API knows."""
    fields = parse_object(body) or {}
    return "size" in fields or fields.get("response_format") == "b64_json"


class OpenAI:
    """Answers like a server of FLUX.1 [schnell] that speaks OpenAI's image API."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio

    async def generate(self, request: Request, body: bytes) -> Response:
        """Answer a generation request."""
        studio = self._studio
        studio.stats.keep(request.url.path, request.headers.raw, body)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not studio.accepts(key):
            return _error(401)
        fields = parse_object(body) or {}
        try:
            order = self._order(fields)
            by_link = choice(fields, "response_format", "url", ("url", "b64_json")) == "url"
        except FieldError as invalid:
            return _error(400, str(invalid), param=invalid.name)
        try:
            ticket = studio.admit(order)
        except Refusal as refusal:
            seconds = refusal.header if studio.settings.retry_after else None
            return self._limited(_error(refusal.status, headers={"retry-after": seconds} if seconds else {}))
        return self._limited(await self._answer(request, ticket, by_link=by_link))

    async def _answer(self, request: Request, ticket: Ticket, *, by_link: bool) -> Response:
        studio, fault = self._studio, ticket.fault
        if fault in STATUS or fault == "fail":
            studio.release(ticket)
            status = 500 if fault == "fail" else int(fault)
            return _error(status, headers=studio.fault_headers(status))
        early = studio.early(ticket, json_answer({"ok": True}))
        if early is not None:
            return early
        if fault == "flagged":
            studio.release(ticket)
            message = "Your request was rejected by the safety system."
            return _error(400, message, param="prompt", code="content_policy_violation")
        images = await studio.produce(ticket)
        if images is None or fault == "timeout_after_charge":
            return studio.hang()
        if by_link:
            shots = ticket.order.shots(fault)
            data = [{"url": studio.links.mint(request, shot, fault).url} for shot in shots]
        else:
            data = [{"b64_json": base64_text(spoil(image, fault)).decode()} for image in images]
        answer = json_answer({"created": int(studio.now()), "data": data})
        return Cut(studio.connections, answer) if fault == "reset_body" and not by_link else answer

    def _order(self, fields: dict[str, Any]) -> Order:
        model = fields.get("model")
        if not isinstance(model, str) or not model.strip():
            message = "you must provide a model parameter"
            raise FieldError("model", message)
        size = fields.get("size")
        found = _SIZE.fullmatch("1024x1024" if size in {None, "auto"} else str(size))
        width, height = (int(found[1]), int(found[2])) if found else (0, 0)
        if width not in _SIDES or height not in _SIDES:
            message = f"Invalid size: sides are from {_SIDES[0]} to {_SIDES[-1]} pixels, as in 1024x1024."
            raise FieldError("size", message)
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
            drawn_seed=self._studio.draw_seed() if seed is None else seed,
            format=picture_format(fields, "png", ("png", "jpeg", "webp")),
            count=whole(fields, "n", 1, range(1, 11)),
        )

    def _limited(self, answer: Response) -> Response:
        bucket = self._studio.limits.bucket
        if bucket is not None:
            now = self._studio.now()
            answer.headers["x-ratelimit-limit-requests"] = str(bucket.burst)
            answer.headers["x-ratelimit-remaining-requests"] = str(bucket.remaining(now))
            answer.headers["x-ratelimit-reset-requests"] = f"{bucket.reset(now):.3f}s"
        return answer


def _error(
    status: int,
    message: str | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    usual, kind, usual_code = _MESSAGES.get(status, _MESSAGES[400])
    error = {"message": message or usual, "type": kind, "param": param, "code": code or usual_code}
    return json_answer({"error": error}, status, headers)
