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

from imagemill.emulator.answers import Cut, base64_text, json_answer, parse_object
from imagemill.emulator.faults import STATUS
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.gallery import spoil
from imagemill.emulator.order import Order
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["MODELS", "PATH", "Together"]

PATH = "/v1/images/generations"
MODELS = ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-schnell-Free")
_SIDES = range(64, 2049, 16)
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
        fields = parse_object(body)
        if fields is None:
            return _error(400, "The request body must be a JSON object.")
        try:
            order = self._order(fields)
            by_link = choice(fields, "response_format", "url", ("url", "base64")) == "url"
        except FieldError as invalid:
            unknown = invalid.name == "model" and isinstance(fields.get("model"), str)
            return _error(404 if unknown else 400, str(invalid), param=invalid.name)
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
            raise FieldError("model", message)
        if model not in MODELS:
            message = f"The model {model[:80]!r} does not exist or is not available to you."
            raise FieldError("model", message)
        seed = None if fields.get("seed") is None else whole(fields, "seed", 0, SEEDS)
        return Order(
            provider="together",
            model=model,
            prompt=prompt_of(fields),
            width=whole(fields, "width", 1024, _SIDES),
            height=whole(fields, "height", 1024, _SIDES),
            steps=whole(fields, "steps", 4, range(1, 13)),
            seed=seed,
            drawn_seed=self._studio.draw_seed() if seed is None else seed,
            format=picture_format(fields, "jpeg", ("jpeg", "png")),
            count=whole(fields, "n", 1, range(1, 5)),
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
