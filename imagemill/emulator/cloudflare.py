"""Cloudflare Workers AI's wire format: `POST /client/v4/accounts/{id}/ai/run/{model}`.

Confirmed by developers.cloudflare.com/workers-ai (models/flux-1-schnell, platform/errors, platform/pricing),
read 2026-11-25: a prompt of at most 2,048 characters, at most 8 steps, and neither size nor seed; the answer
`{result: {image}, success, errors, messages}` with base64; codes 5007 for a model that is not known, 3040 and
a 429 for too little capacity, 3036 and a 429 too for neurons that are used up; 0.0000528 USD a tile of 512
by 512 and 0.0001056 USD a step. By several public callers: 10000 for a key that is not known, 3030 for a
prompt that is flagged.

Unconfirmed: JPEG of 1024 by 1024, the code of an input that cannot be used, and what follows a field that the
model does not have (here nothing).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer
from imagemill.emulator.fields import FieldError
from imagemill.emulator.gallery import spoil
from imagemill.emulator.models import find_model
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.order import Order

__all__ = ["PATH", "Cloudflare"]

PATH = "/client/v4/accounts/{account}/ai/run/{model:path}"
_SIDE = 1024
_UNKNOWN_MODEL = 5007
_INVALID = 5006
_FLAGGED = 3030
_ERRORS = {
    400: (_INVALID, "Bad input."),
    401: (10000, "Authentication error"),
    402: (3036, "You have used up your daily free allocation of 10,000 neurons."),
    413: (3006, "Request is too large"),
    429: (3040, "Capacity temporarily exceeded, please try again."),
    500: (1000, "Internal server error"),
    502: (1001, "Bad gateway"),
    503: (1002, "Service unavailable"),
    504: (1003, "Gateway timeout"),
}


class Cloudflare(Vendor):
    """Answers like Workers AI's API over HTTP, for FLUX.1 [schnell]."""

    async def run(self, request: Request) -> Response:
        """Answer a generation request."""
        ticket = await self.take(request)
        if isinstance(ticket, Response):
            return ticket
        studio, fault = self.studio, ticket.fault
        if fault in {"fail", "flagged"}:
            studio.release(ticket)
            if fault == "fail":
                return self.error(500)
            return _refused(400, _FLAGGED, "AiError: AiError: Input prompt contains NSFW content.")
        images = await studio.produce(ticket)
        if images is None or fault == "timeout_after_charge":
            return studio.hang()
        image = base64_text(spoil(images[0], fault)).decode()
        content = {"result": {"image": image}, "success": True, "errors": [], "messages": []}
        answer = json_answer(content)
        return Cut(studio.connections, answer) if fault == "reset_body" else answer

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        model = request.path_params["model"]
        served = find_model("cloudflare", model)
        if served is None:
            message = f"No such model {model[:80]} or task"
            raise FieldError("model", message, str(_UNKNOWN_MODEL))
        return served.order(fields, self.studio.draw_seed(), (_SIDE, _SIDE))

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        code, message = _ERRORS.get(status, _ERRORS[400])
        return _refused(429 if status == 402 else status, code, detail or message, headers)

    def invalid(self, error: FieldError) -> Response:
        return _refused(400, int(error.code or _INVALID), f"AiError: {error}")


def _refused(status: int, code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    errors = [{"code": code, "message": message}]
    return json_answer({"result": None, "success": False, "errors": errors, "messages": []}, status, headers)
