"""Together's wire format: `POST /v1/images/generations`.

Confirmed by docs.together.ai/docs/rate-limits and the client `together` 3.1.1, read 2026-11-25:

- The rate is dynamic, per organisation and model, and counted per second (:class:`DynamicRate`). Beyond it:
  429 with the type dynamic_request_limited. At or below it, where a burst meets too little capacity: 503.
- `x-ratelimit-limit`, `-remaining` and `-limit-dynamic`, `-remaining-dynamic` are in requests a second;
  `-reset` is the retry interval that is suggested, in seconds. No Retry-After is documented.
- Fields and their enums. The price: megapixels x price x steps / default steps, without rounding.

Unconfirmed: where exactly `error_type` stands (here in `error.type` and beside `error`), fractions in the
headers, the multiples of 16, the largest size and number of steps, and the answer to a prompt that is flagged
(here 422 with the code content_policy_violation). The fixed limits (`max_concurrent`, `per_minute`) are the
emulator's own; their answers carry Retry-After where `retry_after` says so.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer
from imagemill.emulator.fields import FieldError
from imagemill.emulator.gallery import spoil
from imagemill.emulator.models import find_model
from imagemill.emulator.studio import Refusal, Ticket
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.order import Order

__all__ = ["PATH", "Together"]

PATH = "/v1/images/generations"
_MESSAGES = {
    400: ("The request is invalid.", "invalid_request_error", "invalid_request"),
    401: ("Invalid API key provided.", "invalid_request_error", "invalid_api_key"),
    402: ("The credit of the account is exhausted.", "credit_limit", "insufficient_credit"),
    404: ("There is no such model.", "invalid_request_error", "model_not_available"),
    413: ("The request body is too large.", "invalid_request_error", "request_too_large"),
    422: ("The prompt was flagged by the content policy: NSFW content detected.",
          "invalid_request_error", "content_policy_violation"),
    429: ("The rate limit was exceeded; try again later.", "rate_limit", "rate_limit_exceeded"),
    500: ("The server had an error.", "server_error", "internal_error"),
    502: ("Bad gateway.", "server_error", "bad_gateway"),
    503: ("The service is overloaded; try again later.", "service_unavailable", "overloaded"),
    504: ("The request timed out.", "server_error", "timeout"),
}  # fmt: skip
_DYNAMIC = "dynamic_request_limited"


class Together(Vendor):
    """Answers like Together's image API."""

    moves: ClassVar[bool] = True

    async def generate(self, request: Request, body: bytes) -> Response:
        """Answer a generation request."""
        ticket = await self.take(request, body)
        answer = ticket if isinstance(ticket, Response) else await self._answer(request, ticket)
        if answer.status_code != 401:
            for name, value in self._limit_headers(answer.status_code).items():
                answer.headers.setdefault(name, value)
        return answer

    async def _answer(self, request: Request, ticket: Ticket) -> Response:
        studio, fault = self.studio, ticket.fault
        if fault in {"fail", "flagged"}:
            studio.release(ticket)
            return self.error(500 if fault == "fail" else 422)
        images = await studio.produce(ticket)
        if images is None or fault == "timeout_after_charge":
            return studio.hang()
        if ticket.asked.get("response_format") != "base64":
            shots = ticket.order.shots(fault)
            urls = [studio.links.mint(request, shot, fault).url for shot in shots]
            return _result(ticket.order.model, [b'"url":"%b","type":"url"' % url.encode() for url in urls])
        parts = [b'"b64_json":"%b","type":"b64_json"' % base64_text(spoil(image, fault)) for image in images]
        answer = _result(ticket.order.model, parts)
        return Cut(studio.connections, answer) if fault == "reset_body" else answer

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        del request
        model = fields.get("model")
        if not isinstance(model, str):
            message = "A model is required."
            raise FieldError("model", message)
        served = find_model("together", model)
        if served is None:
            message = f"The model {model[:80]!r} does not exist or is not available to you."
            raise FieldError("model", message, "model_not_available")
        return served.order(fields, self.studio.draw_seed())

    def refusal(self, refusal: Refusal) -> Response:
        if self.studio.dynamic is None:
            return super().refusal(refusal)
        headers = {"x-ratelimit-reset": f"{refusal.wait_s or 1:.3f}"}
        if refusal.status == 503:
            return self.error(503, headers=headers)
        message = "Your request rate is above the dynamic rate limit of this model."
        error = {"message": message, "type": _DYNAMIC, "param": None, "code": _MESSAGES[429][2]}
        return json_answer({"error": error, "error_type": _DYNAMIC}, 429, headers)

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        message, kind, code = _MESSAGES.get(status, _MESSAGES[400])
        error = {"message": detail or message, "type": kind, "param": None, "code": code}
        return json_answer({"error": error}, status, headers)

    def invalid(self, error: FieldError) -> Response:
        status = 400 if error.code is None else 404
        _, kind, code = _MESSAGES[status]
        content = {"message": str(error), "type": kind, "param": error.name or None, "code": code}
        return json_answer({"error": content}, status)

    def _limit_headers(self, status: int) -> dict[str, str]:
        limits, now, dynamic = self.studio.limits, self.studio.now(), self.studio.dynamic
        if dynamic is not None:
            base = dynamic.base_per_minute / 60
            rate = dynamic.per_minute(now) / 60
            left = str(dynamic.bucket.remaining(now))
            return {
                "x-ratelimit-limit": f"{round(base, 2):g}",
                "x-ratelimit-remaining": left,
                "x-ratelimit-reset": f"{dynamic.bucket.wait(now):.3f}",
                "x-ratelimit-limit-dynamic": f"{round(rate, 2):g}",
                "x-ratelimit-remaining-dynamic": left,
            }
        if limits.bucket is not None:
            return {
                "x-ratelimit-limit": str(limits.bucket.burst),
                "x-ratelimit-remaining": str(limits.bucket.remaining(now)),
                "x-ratelimit-reset": f"{limits.bucket.reset(now):.3f}",
            }
        if limits.max_concurrent is not None and status == 429:
            return {
                "x-ratelimit-limit": str(limits.max_concurrent),
                "x-ratelimit-remaining": str(max(0, limits.max_concurrent - limits.in_flight)),
            }
        return {}


def _result(model: str, parts: list[bytes]) -> Response:
    # The body is joined by hand: the images are long, and their base64 needs no escapes.
    data = b",".join(b'{"index":%d,%b}' % (index, part) for index, part in enumerate(parts))
    body = b'{"id":"%b","model":"%b","object":"list","data":[%b]}' % (
        uuid.uuid4().hex.encode(),
        model.encode(),
        data,
    )
    return Response(body, media_type="application/json")
