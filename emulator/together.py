"""Together's wire format: `POST /v1/images/generations`.

Unconfirmed against the vendor: the multiples of 16, the largest size and number of steps, the
numbers in the x-ratelimit headers (here those of the token bucket), and the answer to a prompt
that its moderation flags (here 422 with the code content_policy_violation). Newer documents of
the vendor size this model by `aspect_ratio`; like every field not named here it is ignored.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from emulator.answers import Cut, base64_text, json_answer, parse_object
from emulator.faults import STATUS, FaultPlan, UnknownFaultError
from emulator.gallery import spoil
from emulator.order import Order
from emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["MODELS", "PATH", "Together"]

PATH = "/v1/images/generations"
MODELS = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-schnell-Free")
_SIDES = range(64, 2049, 16)
_STEPS = range(1, 13)
_COUNTS = range(1, 5)
_SEEDS = range(-(2**63), 2**64)
_MESSAGES = {
    400: ("The request is invalid.", "invalid_request_error", "invalid_request"),
    401: ("Invalid API key provided.", "invalid_request_error", "invalid_api_key"),
    402: ("The credit of the account is exhausted.", "credit_limit", "insufficient_credit"),
    404: ("There is no such model.", "invalid_request_error", "model_not_available"),
    413: ("The request body is too large.", "invalid_request_error", "request_too_large"),
    429: ("The rate limit was exceeded; try again later.", "rate_limit", "rate_limit_exceeded"),
    500: ("The server had an error.", "server_error", "internal_error"),
    502: ("Bad gateway.", "server_error", "bad_gateway"),
    503: ("The service is overloaded; try again later.", "service_unavailable", "overloaded"),
    504: ("The request timed out.", "server_error", "timeout"),
}


class _InvalidError(Exception):
    """The body cannot be used: status, message, and the parameter at fault."""

    def __init__(self, message: str, param: str | None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class Together:
    """Answers like Together's image API."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio

    async def generate(self, request: Request, body: bytes) -> Response:
        """Answer a generation request."""
        self._studio.stats.keep(request.url.path, request.headers.raw, body)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._studio.accepts(key):
            return _error(401)
        try:
            fields = _fields(body)
            order = self._order(fields)
            by_link = _choice(fields, "response_format", ("url", "base64")) == "url"
        except _InvalidError as invalid:
            return _error(invalid.status, str(invalid), param=invalid.param)
        try:
            ticket = self._studio.admit(order)
        except Refusal as refusal:
            return _error(refusal.status, headers=self._limit_headers(refusal))
        answer = await self._answer(request, ticket, by_link=by_link)
        for name, value in self._limit_headers(None).items():
            answer.headers.setdefault(name, value)
        return answer

    @staticmethod
    def too_large() -> Response:
        """Answer a body that is too large."""
        return _error(413)

    async def _answer(self, request: Request, ticket: Ticket, *, by_link: bool) -> Response:
        studio = self._studio
        fault = ticket.fault
        if fault in STATUS or fault == "fail":
            studio.release(ticket)
            status = 500 if fault == "fail" else int(fault)
            return _error(status, headers=studio.fault_headers(status))
        early = studio.early(ticket, json_answer({"status": "ok", "output": {"images": 1}}))
        if early is not None:
            return early
        if fault == "flagged":
            studio.release(ticket)
            message = "The prompt was flagged by the content policy: NSFW content detected."
            return _error(422, message, param="prompt", code="content_policy_violation")
        images = await studio.produce(ticket)
        if images is None or fault == "timeout_after_charge":
            return studio.hang()
        if by_link:
            shots = ticket.order.shots(fault)
            urls = [studio.links.mint(request, shot, fault).url for shot in shots]
            return _result(ticket.order.model, [b'"url":"%b"' % url.encode() for url in urls])
        parts = [b'"b64_json":"%b","type":"b64_json"' % base64_text(spoil(image, fault)) for image in images]
        answer = _result(ticket.order.model, parts)
        return Cut(studio.connections, answer) if fault == "reset_body" else answer

    def _order(self, fields: dict[str, Any]) -> Order:
        model = fields.get("model")
        if not isinstance(model, str):
            message = "A model is required."
            raise _InvalidError(message, "model")
        if model not in MODELS:
            message = f"The model {model[:80]!r} does not exist or is not available to you."
            raise _InvalidError(message, "model", 404)
        prompt = fields.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            message = "A prompt that is not blank is required."
            raise _InvalidError(message, "prompt")
        try:
            FaultPlan.check(prompt)
        except UnknownFaultError as unknown:
            message = f"The emulator has no fault {unknown}."
            raise _InvalidError(message, "prompt") from unknown
        seed = None if fields.get("seed") is None else _whole(fields, "seed", 0, _SEEDS)
        return Order(
            provider="together",
            model=model,
            prompt=prompt,
            width=_whole(fields, "width", 1024, _SIDES),
            height=_whole(fields, "height", 1024, _SIDES),
            steps=_whole(fields, "steps", 4, _STEPS),
            seed=seed,
            drawn_seed=self._studio.draw_seed() if seed is None else seed,
            format="png" if _choice(fields, "output_format", ("jpeg", "png")) == "png" else "jpeg",
            count=_whole(fields, "n", 1, _COUNTS),
        )

    def _limit_headers(self, refusal: Refusal | None) -> dict[str, str]:
        limits = self._studio.limits
        now = self._studio.now()
        headers = {}
        if limits.bucket is not None:
            headers = {
                "x-ratelimit-limit": str(limits.bucket.burst),
                "x-ratelimit-remaining": str(limits.bucket.remaining(now)),
                "x-ratelimit-reset": f"{limits.bucket.reset(now):.3f}",
            }
        elif limits.max_concurrent is not None and refusal is not None:
            headers = {
                "x-ratelimit-limit": str(limits.max_concurrent),
                "x-ratelimit-remaining": str(max(0, limits.max_concurrent - limits.in_flight)),
            }
        seconds = refusal.header if refusal is not None else None
        if seconds is not None and self._studio.settings.retry_after:
            headers["retry-after"] = seconds
        return headers


def _fields(body: bytes) -> dict[str, Any]:
    fields = parse_object(body)
    if fields is None:
        message = "The request body must be a JSON object."
        raise _InvalidError(message, None)
    return fields


def _whole(fields: dict[str, Any], name: str, default: int, allowed: range) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        step = f" and a multiple of {allowed.step}" if allowed.step > 1 else ""
        message = f"{name} must be a whole number from {allowed[0]} to {allowed[-1]}{step}."
        raise _InvalidError(message, name)
    return value


def _choice(fields: dict[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = fields.get(name)
    if value is None:
        return allowed[0]
    if value not in allowed:
        message = f"{name} must be one of {', '.join(allowed)}."
        raise _InvalidError(message, name)
    return str(value)


def _result(model: str, parts: list[bytes]) -> Response:
    # The body is joined by hand: the images are long, and their base64 needs no escapes.
    data = b",".join(b'{"index":%d,%b}' % (index, part) for index, part in enumerate(parts))
    body = b'{"id":"%b","model":"%b","object":"list","data":[%b]}' % (
        uuid.uuid4().hex.encode(),
        model.encode(),
        data,
    )
    return Response(body, media_type="application/json")


def _error(
    status: int,
    message: str | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    usual, kind, usual_code = _MESSAGES.get(status, _MESSAGES[400])
    error = {
        "message": message or usual,
        "type": kind,
        "param": param,
        "code": code or usual_code,
    }
    return json_answer({"error": error}, status, headers)
