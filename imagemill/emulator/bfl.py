"""Black Forest Labs' wire format: submit, and poll at the `polling_url` given.

Unconfirmed against the vendor: that a schnell model is offered, the wording of errors, the status code of
"Task not found" (here 200), and that moderated tasks are not charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagemill.emulator.answers import BodyTooLargeError, base_url, json_answer, parse_object, read_body
from imagemill.emulator.faults import STATUS
from imagemill.emulator.fields import SEEDS, FieldError, picture_format, prompt_of, whole
from imagemill.emulator.order import Order
from imagemill.emulator.queue import Queue
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from imagemill.emulator.queue import Task

__all__ = ["MODELS", "BlackForestLabs"]

MODELS = ("flux-dev", "flux-pro", "flux-pro-1.1", "flux-schnell")
_SIDES = range(256, 1441, 32)
_DETAILS = {
    400: "Bad request.",
    401: "Not authenticated.",
    402: "Insufficient credits. Please add credits to your account.",
    403: "Not authenticated - Invalid Authentication.",
    404: "Not Found",
    413: "The request body is too large.",
    429: "Too many active tasks. Wait for one to finish.",
    500: "Internal server error.",
    502: "Bad gateway.",
    503: "The service is under maintenance or heavy load.",
    504: "Gateway timeout.",
}


class BlackForestLabs:
    """Answers like the API of Black Forest Labs."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio
        self._queue = Queue(studio)

    async def submit(self, request: Request) -> Response:
        """Answer `POST /v1/{model}`: the id of a task, and where to ask about it."""
        ticket = await self._admit(request)
        if not isinstance(ticket, Ticket):
            return ticket
        early = self._early(ticket)
        if early is not None:
            return early
        task = self._queue.add(ticket)
        polling_url = f"{base_url(request)}/v1/get_result?id={task.id}"
        return json_answer({"id": task.id, "polling_url": polling_url})

    async def _admit(self, request: Request) -> Ticket | Response:
        try:
            body = await read_body(request)
        except BodyTooLargeError:
            return _error(413)
        self._studio.stats.keep(request.url.path, request.headers.raw, body)
        if not self._known(request):
            return _error(403)
        model = request.path_params["model"]
        if model not in MODELS:
            return _error(404)
        try:
            return self._studio.admit(self._order(model, parse_object(body)))
        except FieldError as invalid:
            place = ["body", invalid.name] if invalid.name else ["body"]
            return _error(422, [{"loc": place, "msg": str(invalid), "type": "value_error"}])
        except Refusal as refusal:
            return _error(refusal.status)

    def _early(self, ticket: Ticket) -> Response | None:
        """Return the answer of a fault of the submit itself, None without one."""
        if ticket.fault not in STATUS:
            return self._studio.early(ticket, json_answer({"ok": True}))
        self._studio.release(ticket)
        status = int(ticket.fault)
        return _error(status, headers=self._studio.fault_headers(status))

    async def result(self, request: Request) -> Response:
        """Answer `GET polling_url`."""
        if self._studio.poll():
            return _error(429)
        if not self._known(request):
            return _error(403)
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

    def _known(self, request: Request) -> bool:
        return self._studio.accepts(request.headers.get("x-key", ""))

    def _order(self, model: str, fields: dict[str, Any] | None) -> Order:
        if fields is None:
            message = "The body must be a JSON object."
            raise FieldError("", message)
        seed = None if fields.get("seed") is None else whole(fields, "seed", 0, SEEDS)
        whole(fields, "safety_tolerance", 2, range(7))
        return Order(
            provider="bfl",
            model=model,
            prompt=prompt_of(fields),
            width=whole(fields, "width", 1024, _SIDES),
            height=whole(fields, "height", 768, _SIDES),
            steps=whole(fields, "steps", 28, range(1, 51)),
            seed=seed,
            drawn_seed=self._studio.draw_seed() if seed is None else seed,
            format=picture_format(fields, "jpeg", ("jpeg", "png")),
        )


def _error(status: int, detail: object = None, *, headers: dict[str, str] | None = None) -> Response:
    return json_answer({"detail": detail or _DETAILS.get(status, _DETAILS[400])}, status, headers)
