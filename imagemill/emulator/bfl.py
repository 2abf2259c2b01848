"""Black Forest Labs' wire format: submit, and poll at the `polling_url` given.

Confirmed by docs.bfl.ai (quick start, errors, pricing, FLUX.2), read 2026-11-25: its models, of which
schnell is none; FLUX.2 from 64 pixels by 16, at most 4 megapixels in all, FLUX.1 from 256 to 1440 by 32; at
most 24 requests unfinished at once (`max_concurrent`), a 429 beyond; `X-RateLimit-*` and Retry-After; errors
as `{detail}` or `{error, message, retry_after}`; a link lives ten minutes (`link_ttl_s`). By several public
callers: the submit's answer tells its `cost` in credits of 0.01 USD.

Unconfirmed: the wording of errors, the status code of "Task not found" (here 200), and that moderated tasks
are not charged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.responses import Response

from imagemill.emulator.answers import base_url, json_answer
from imagemill.emulator.bill import nano_usd
from imagemill.emulator.fields import FieldError
from imagemill.emulator.models import find_model
from imagemill.emulator.queue import Queue
from imagemill.emulator.studio import Refusal, Studio
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.order import Order
    from imagemill.emulator.queue import Task

__all__ = ["BlackForestLabs"]

_NANO_A_CREDIT = 10_000_000
_DETAILS = {
    400: "Bad request.",
    401: "Not authenticated.",
    402: "Insufficient credits. Please add credits to your account.",
    403: "Not authenticated - Invalid Authentication.",
    404: "Not Found",
    413: "The request body is too large.",
    500: "Internal server error.",
    502: "Bad gateway.",
    503: "The service is under maintenance or heavy load.",
    504: "Gateway timeout.",
}


class BlackForestLabs(Vendor):
    """Answers like the API of Black Forest Labs."""

    stranger: ClassVar[int] = 403

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        super().__init__(studio)
        self._queue = Queue(studio)

    async def submit(self, request: Request) -> Response:
        """Answer `POST /v1/{model}`: the id of a task, and where to ask about it."""
        ticket = await self.take(request)
        if isinstance(ticket, Response):
            return ticket
        task = self._queue.add(ticket)
        order = ticket.order
        content = {
            "id": task.id,
            "polling_url": f"{base_url(request)}/v1/get_result?id={task.id}",
            "cost": nano_usd(order) / _NANO_A_CREDIT,
            "input_mp": 0.0,
            "output_mp": round(order.width * order.height / 1e6, 2),
        }
        return json_answer(content)

    async def result(self, request: Request) -> Response:
        """Answer `GET polling_url`."""
        if wait_s := self.studio.poll():
            return self.refusal(Refusal(429, "rate", wait_s))
        if not self.known(request):
            return self.error(403)
        task_id = request.query_params.get("id", "")
        task = self._queue.find(task_id)
        if task is None:
            return json_answer({"id": task_id[:80], "status": "Task not found", "result": None})
        return json_answer({"id": task.id, **self._state(request, task)})

    def _state(self, request: Request, task: Task) -> dict[str, Any]:
        order = task.ticket.order
        match task.state:
            case "done":
                (link,) = self._queue.links(request, task, signed=True)
                result = {"sample": link, "prompt": order.prompt, "seed": order.drawn_seed}
                return {"status": "Ready", "result": result}
            case "flagged":
                return {"status": "Request Moderated", "result": None}
            case "failed":
                return {"status": "Error", "result": None, "details": {"error": "The task failed."}}
        return {"status": "Pending", "result": None, "progress": None}

    def known(self, request: Request) -> bool:
        return self.studio.accepts(request.headers.get("x-key", ""))

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        model = request.path_params["model"]
        served = find_model("bfl", model)
        if served is None:
            raise FieldError("model", _DETAILS[404], "not_found")
        return served.order(fields, self.studio.draw_seed())

    def refusal(self, refusal: Refusal) -> Response:
        limits = self.studio.limits
        seconds = max(1, math.ceil(refusal.wait_s or 1))
        message = "Too many active tasks. Wait for one to finish."
        content: dict[str, Any] = {"error": "rate_limit_exceeded", "message": message}
        headers = {}
        if limits.max_concurrent is not None:
            headers["x-ratelimit-limit"] = str(limits.max_concurrent)
            headers["x-ratelimit-remaining"] = str(max(0, limits.max_concurrent - limits.in_flight))
        if self.studio.settings.retry_after and refusal.wait_s is not None:
            content["retry_after"] = seconds
            headers["retry-after"] = str(seconds)
        return json_answer(content, refusal.status, headers)

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return json_answer({"detail": detail or _DETAILS.get(status, _DETAILS[400])}, status, headers)

    def invalid(self, error: FieldError) -> Response:
        if error.code == "not_found":
            return self.error(404)
        place = ["body", error.name] if error.name else ["body"]
        return json_answer({"detail": [{"loc": place, "msg": str(error), "type": error.kind}]}, 422)
