"""fal's wire format: the queue, and the synchronous form that stands for fal.run.

Confirmed by fal's documents and client (fal.ai/docs: concurrency-limits, inference/queue, request-errors,
errors, inference-api/queue; `fal_client` 1.0.3), read 2026-11-25:

- The queue takes every submit. Beyond the account's slots requests are IN_QUEUE, with the number of those
  ahead as `queue_position`; only IN_PROGRESS counts against the limit. States go on at `/status` (202 until
  COMPLETED) and at `/status/stream`.
- A queued input is checked by the model: one that it does not take is COMPLETED, and its result is the 422
  (TanStack/ai#396, tried against the live API). An error is told inside COMPLETED as `error`, `error_type`.
- `PUT .../cancel`: 202 CANCELLATION_REQUESTED, or 400 ALREADY_COMPLETED. What waits is not charged.
- Errors of the platform are `{detail, error_type}` with the type again in X-Fal-Error-Type; those of a model
  are `{detail: [{loc, msg, type}]}`.
- `X-Fal-Request-Timeout`: seconds within which a request must have begun.

By several public callers: only the synchronous form refuses beyond the limit, with a 429 of the type
concurrent_requests_limit and `X-Fal-Needs-Retry: 1`; a result is forgotten after about an hour.

Unconfirmed: the status of a fault where the gateway answers by itself, what follows a cancellation of a
request that is running (here it ends without a charge), how often the stream repeats a position that moved
(here twice a second), a rate limit of any kind (`per_minute` is the emulator's own), the largest sides.
"""

from __future__ import annotations

import json
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.responses import Response, StreamingResponse

from imagemill.emulator.answers import Cut, base64_text, base_url, json_answer
from imagemill.emulator.fal_input import application_of, read_input
from imagemill.emulator.fields import FieldError
from imagemill.emulator.gallery import spoil
from imagemill.emulator.models import find_model
from imagemill.emulator.order import Order
from imagemill.emulator.queue import End, Queue, Task
from imagemill.emulator.studio import Refusal, Studio, Ticket
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

__all__ = ["APPLICATION", "PATH", "Fal", "fal_answer", "output_of"]

APPLICATION = "/fal-ai/{application}"
PATH = "/fal-ai/{name:path}"
_COMMENT_S = 15.0
_POSITION_S = 0.5
_DETAILS = {
    400: ("Bad request.", "bad_request"),
    401: ("Authentication is required to access this application.", "unauthorized"),
    403: ("User is locked. Reason: Exhausted balance.", "user_locked"),
    404: ("Request not found.", "bad_request"),
    413: ("The request body is too large.", "bad_request"),
    429: ("The concurrent requests limit was reached; try again later.", "concurrent_requests_limit"),
    499: ("The request was cancelled.", "client_cancelled"),
    500: ("The runner encountered an internal server error.", "runner_server_error"),
    502: ("The runner sent an incomplete response.", "runner_incomplete_response"),
    503: ("No runner is available.", "runner_scheduling_failure"),
    504: ("The request timed out.", "request_timeout"),
}
_STATUS: dict[End, int] = {
    "done": 200, "flagged": 200, "failed": 500, "rejected": 422, "late": 504, "canceled": 499,
}  # fmt: skip


class Fal(Vendor):
    """Answers like fal's queue and like fal.run."""

    schemes: ClassVar[frozenset[str]] = frozenset({"key"})
    exhausted: ClassVar[int] = 403

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        super().__init__(studio)
        self.queue = Queue(studio, flags=False)

    async def submit(self, request: Request) -> Response:
        """Answer a submit to the queue: the links of the request, which waits its turn from now on."""
        fields = await self.fields(request)
        if isinstance(fields, Response):
            return fields
        model, error = _model_of(request), None
        if find_model("fal", model) is None:
            return self._unknown(model)
        try:
            order = self.order(request, fields)
        except FieldError as invalid:
            order, error = Order("fal", model, "", 0, 0, 0, None, 0, "jpeg", count=0), invalid
        ticket = self.admit(order, fields, queues=True)
        if isinstance(ticket, Response):
            return ticket
        task = self.queue.add(ticket, error=error, start_s=_start_s(request))
        content = {"request_id": task.id, **_links(request, task), "status": "IN_QUEUE"}
        return fal_answer(content | {"queue_position": self.studio.position(ticket)}, request_id=task.id)

    async def run(self, request: Request) -> Response:
        """Answer the synchronous form: the result itself."""
        model = _model_of(request)
        if find_model("fal", model) is None:
            return self._unknown(model)
        ticket = await self.take(request)
        if isinstance(ticket, Response):
            return ticket
        if ticket.fault == "fail":
            self.studio.release(ticket)
            return self.error(500)
        images = await self.studio.produce(ticket)
        if images is None or ticket.fault == "timeout_after_charge":
            return self.studio.hang()
        return await self._result(request, Task(uuid.uuid4().hex, ticket))

    async def status(self, request: Request) -> Response:
        """Answer a poll: 202 until the request is completed."""
        if self.studio.poll():
            return self.error(429)
        task = self._task(request)
        if isinstance(task, Response):
            return task
        return fal_answer(self._state(request, task), 200 if task.end else 202, request_id=task.id)

    async def status_stream(self, request: Request) -> Response:
        """Answer with a server-sent event a state, and for a position that moved, until it is completed."""
        if self.studio.poll():
            return self.error(429)
        task = self._task(request)
        return (
            task
            if isinstance(task, Response)
            else StreamingResponse(self._events(request, task), media_type="text/event-stream")
        )

    async def _events(self, request: Request, task: Task) -> AsyncIterator[bytes]:
        studio, told = self.studio, None
        comment_at = studio.now() + _COMMENT_S
        while True:
            content = self._state(request, task)
            state = (content["status"], content.get("queue_position"))
            if state != told:
                told = state
                yield b"data: " + json.dumps(content).encode() + b"\n\n"
            elif studio.now() >= comment_at:
                comment_at += _COMMENT_S
                yield b": still here\n\n"
            if task.end:
                return
            if state[0] == "IN_QUEUE":
                going = await studio.wait(task.ticket.turn, _POSITION_S)
            else:
                going = await studio.wait(task.over, _COMMENT_S)
            if not going:
                return

    async def result(self, request: Request) -> Response:
        """Answer `GET response_url`: the result, or 400 while the request is in progress."""
        task = self._task(request)
        if isinstance(task, Response):
            return task
        if task.end is None:
            return self.error(400, "Request is still in progress")
        if task.end == "rejected" and isinstance(task.error, FieldError):
            return self.invalid(task.error)
        status = self.status_of(task)
        return await self._result(request, task) if status == HTTPStatus.OK else self.error(status)

    async def cancel(self, request: Request) -> Response:
        """Answer `PUT cancel_url`: a request that is not completed ends, without a charge."""
        task = self._task(request)
        if isinstance(task, Response):
            return task
        if task.end:
            return fal_answer({"status": "ALREADY_COMPLETED"}, 400, request_id=task.id)
        self.queue.cancel(task)
        return fal_answer({"status": "CANCELLATION_REQUESTED"}, 202, request_id=task.id)

    def known(self, request: Request, *, admin: bool = False) -> bool:
        """Say whether a request carries a key that is accepted, or that of an `admin`."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() in self.schemes and self.studio.accepts(key, admin=admin)

    @staticmethod
    def status_of(task: Task) -> int:
        """Return the status of a result that is over."""
        return _STATUS[task.end or "failed"]

    def _unknown(self, model: str) -> Response:
        """Return the answer to a path that names no application."""
        return self.error(404, f"Application {model[:80]!r} was not found.")

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        model = find_model("fal", _model_of(request))
        if model is None:
            message = "There is no such model."
            raise FieldError("", message)
        return read_input(model, fields, self.studio.draw_seed())

    def refusal(self, refusal: Refusal) -> Response:
        seconds = refusal.header if self.studio.settings.retry_after else None
        headers = {"retry-after": seconds} if seconds else {}
        if refusal.limit == "concurrency":
            headers["x-fal-needs-retry"] = "1"
        return self.error(429, headers=headers)

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        usual, kind = _DETAILS.get(status, _DETAILS[400])
        content = {"detail": detail or usual, "error_type": kind}
        return fal_answer(content, status, headers={**(headers or {}), "x-fal-error-type": kind})

    def invalid(self, error: FieldError) -> Response:
        place = error.name.split(".") if error.name else []
        content = {"detail": [{"loc": ["body", *place], "msg": str(error), "type": error.kind}]}
        return fal_answer(content, 422, headers={"x-fal-retryable": "false"})

    def _state(self, request: Request, task: Task) -> dict[str, Any]:
        content: dict[str, Any] = {"request_id": task.id, **_links(request, task)}
        if task.state == "queued":
            return content | {"status": "IN_QUEUE", "queue_position": self.studio.position(task.ticket)}
        if task.end is None:
            return content | {"status": "IN_PROGRESS", "logs": None}
        content |= {"status": "COMPLETED", "logs": None, "metrics": {}}
        status = self.status_of(task)
        if status == HTTPStatus.OK:
            content["metrics"] = {"inference_time": round(task.ticket.latency_s, 6)}
        elif status != HTTPStatus.UNPROCESSABLE_ENTITY:
            detail, kind = _DETAILS[status]
            content |= {"error": detail, "error_type": kind}
        return content

    def _task(self, request: Request) -> Task | Response:
        if not self.known(request):
            return self.error(401)
        task = self.queue.find(request.path_params["request_id"])
        if task is None or self.queue.forgotten(task) or not request.url.path.startswith(_place(task)):
            return self.error(404)
        return task

    async def _result(self, request: Request, task: Task) -> Response:
        ticket, studio = task.ticket, self.studio
        inline, fault = bool(ticket.asked.get("sync_mode")), ticket.fault
        if inline:
            kind = ticket.order.format
            images = [spoil(await studio.picture(shot), fault) for shot in ticket.order.shots(fault)]
            urls = [f"data:image/{kind};base64,{base64_text(image).decode()}" for image in images]
        else:
            urls = self.queue.links(request, task, renewed=True)
        answer = fal_answer(output_of(ticket, urls), request_id=task.id)
        if fault == "reset_body" and inline and not task.cut:
            task.cut = True
            return Cut(studio.connections, answer)
        return answer


def output_of(ticket: Ticket, urls: list[str]) -> dict[str, Any]:
    """Return the model's output: the images at these links or in these data URIs, in pixels."""
    order = ticket.order
    image = {"width": order.width, "height": order.height, "content_type": f"image/{order.format}"}
    return {
        "images": [{"url": url, **image} for url in urls],
        "timings": {"inference": round(ticket.latency_s, 6)},
        "seed": order.drawn_seed,
        "has_nsfw_concepts": [ticket.fault in {"black", "flagged"}] * order.count,
        "prompt": order.prompt,
    }


def _start_s(request: Request) -> float | None:
    """Return the seconds within which a request must have begun; None where it says nothing usable."""
    try:
        return max(0.0, float(request.headers.get("x-fal-request-timeout", "")))
    except ValueError:
        return None


def _model_of(request: Request) -> str:
    return f"fal-ai/{request.path_params['name']}"


def _place(task: Task) -> str:
    """Return the path of a request in the queue of its application."""
    return f"/{application_of(task.ticket.order.model)}/requests/{task.id}"


def _links(request: Request, task: Task) -> dict[str, str]:
    root = f"{base_url(request)}{_place(task)}"
    return {
        "response_url": root,
        "status_url": f"{root}/status",
        "cancel_url": f"{root}/cancel",
    }


def fal_answer(
    content: object,
    status: int = 200,
    *,
    request_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a JSON answer with the id of its request, which every answer of fal's has."""
    name = request_id or uuid.uuid4().hex
    return json_answer(content, status, {**(headers or {}), "x-fal-request-id": name})
