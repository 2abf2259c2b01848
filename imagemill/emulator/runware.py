"""Runware's wire format: `POST /v1` with an array of tasks.

Confirmed by runware.ai/docs (platform/errors, task-details, task-polling, image-inference) and the client
`runware` 0.5.24, read 2026-11-25:

- The client chooses each `taskUUID`. `getTaskDetails` returns request and response of a past task,
  `getResponse` the state of one that was asked for with `deliveryMethod` async: processing, success or error.
- The answer is `{data: [...]}`, or `{errors: [{code, message, parameter, taskType, taskUUID}]}` with the HTTP
  status that goes with it. `cost` is told, in USD, where `includeCost` asks for it.
- A UUID that is sent twice is refused as conflictTaskUUID: the vendor's client handles that code. The setting
  `runware_repeats` has the other ways, since no document says which it is.

Unconfirmed: the price (0.0013 USD a megapixel at 4 steps), the status and code for a task that is not known
or not over, and what is said of a prompt that is flagged (here `NSFWContent` beside a black picture).
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base64_text, json_answer
from imagemill.emulator.bill import usd
from imagemill.emulator.fields import FieldError
from imagemill.emulator.gallery import spoil
from imagemill.emulator.models import find_model
from imagemill.emulator.studio import Studio, Ticket
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.order import Order

__all__ = ["Runware"]

_INLINE = {"base64Data": "imageBase64Data", "dataURI": "imageDataURI"}
_ERRORS = {
    400: ("invalidRequest", "The request is invalid."),
    401: ("invalidApiKey", "Invalid API key. Get one at https://my.runware.ai/signup"),
    402: ("insufficientCredits", "Insufficient credits in your account."),
    404: ("taskNotFound", "There is no such task."),
    413: ("requestTooLarge", "The request body is too large."),
    429: ("rateLimitExceeded", "Too many requests; try again later."),
    500: ("internalServerError", "The server had an error."),
    502: ("badGateway", "Bad gateway."),
    503: ("serviceUnavailable", "There is no capacity; try again later."),
    504: ("timeoutProvider", "The provider did not answer in time."),
}
_Answer = dict[str, list[dict[str, Any]]]


class Runware(Vendor):
    """Answers like Runware's API over HTTP, for pictures from text."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        super().__init__(studio)
        self._past: dict[str, tuple[dict[str, Any], _Answer | None]] = {}

    async def post(self, request: Request) -> Response:
        """Answer an array of tasks."""
        body = await self.received(request)
        if isinstance(body, Response):
            return body
        tasks = _tasks(body)
        if not tasks:
            return self.error(400, "The body must be an array of tasks.")
        answers = await asyncio.gather(*(self._task(request, task) for task in tasks))
        merged: _Answer = {}
        for answer in answers:
            if isinstance(answer, Response) and (len(tasks) == 1 or answer.media_type != "application/json"):
                return answer
            told = json.loads(bytes(answer.body)) if isinstance(answer, Response) else answer
            for name, items in told.items():
                merged.setdefault(name, []).extend(items)
        return json_answer(merged, 200 if "data" in merged else _status(merged))

    def buys(self, body: bytes) -> bool:
        tasks = _tasks(body)
        return not tasks or any(task.get("taskType") == "imageInference" for task in tasks)

    async def _task(self, request: Request, task: dict[str, Any]) -> _Answer | Response:
        match task.get("taskType"):
            case "imageInference":
                return await self._inference(request, task)
            case "getTaskDetails" | "getResponse":
                return self._asked(task)
            case "ping":
                return {"data": [{"taskType": "ping", "pong": True}]}
        return self.invalid(_wrong("taskType", "Unsupported value for 'taskType'.", task))

    async def _inference(self, request: Request, task: dict[str, Any]) -> _Answer | Response:
        try:
            name = _uuid(task)
            order = self.order(request, task)
        except FieldError as error:
            return self.invalid(_wrong(error.name, str(error), task, error.code))
        ticket = self._repeated(name, task) or self.admit(order, task)
        if not isinstance(ticket, Ticket):
            return ticket
        self._past[name] = (task, None)
        if task.get("deliveryMethod") == "async":
            self.studio.spawn(self._make_later(request, name, ticket))
            return {"data": [{"taskType": "imageInference", "taskUUID": name}]}
        made = await self._make(request, name, ticket)
        if made is None or ticket.fault == "timeout_after_charge":
            return self.studio.hang()
        cut = ticket.fault == "reset_body" and task.get("outputType", "URL") != "URL"
        return Cut(self.studio.connections, json_answer(made)) if cut else made

    def _repeated(self, name: str, task: dict[str, Any]) -> _Answer | Response | None:
        """Return the answer to a UUID that was used before; None where the task is to be made."""
        repeats = self.studio.settings.runware_repeats
        if name not in self._past or repeats == "made_again":
            return None
        _, response = self._past[name]
        if repeats == "answered" and response is not None:
            return response
        return self.invalid(_wrong("taskUUID", "This taskUUID was used already.", task, "conflictTaskUUID"))

    async def _make_later(self, request: Request, name: str, ticket: Ticket) -> None:
        await self._make(request, name, ticket)

    async def _make(self, request: Request, name: str, ticket: Ticket) -> _Answer | None:
        """Return the response of a task, which is remembered; None when the server stops."""
        if ticket.fault == "fail":
            self.studio.release(ticket)
            response = _errors(_item(500, ticket.asked))
        else:
            images = await self.studio.produce(ticket)
            if images is None:
                return None
            response = {"data": self._images(request, name, ticket, images)}
        self._past[name] = (ticket.asked, response)
        return response

    def _images(
        self, request: Request, name: str, ticket: Ticket, images: list[bytes]
    ) -> list[dict[str, Any]]:
        order, asked, fault = ticket.order, ticket.asked, ticket.fault
        items = []
        for shot, image in zip(order.shots(fault), images, strict=True):
            item: dict[str, Any] = {
                "taskType": "imageInference",
                "taskUUID": name,
                "imageUUID": str(uuid.uuid4()),
                "seed": shot.seed,
                "NSFWContent": fault == "flagged",
            }
            kind = asked.get("outputType", "URL")
            if kind == "URL":
                item["imageURL"] = self.studio.links.mint(request, shot, fault).url
            else:
                text = base64_text(spoil(image, fault)).decode()
                head = f"data:{shot.media_type};base64," if kind == "dataURI" else ""
                item[_INLINE[kind]] = head + text
            if asked.get("includeCost"):
                item["cost"] = usd(order) / order.count
            items.append(item)
        return items

    def _asked(self, task: dict[str, Any]) -> _Answer | Response:
        """Answer a question about a past task."""
        name, kind = str(task.get("taskUUID")), str(task["taskType"])
        known = self._past.get(name)
        if kind == "getResponse" and known is not None:
            _, response = known
            if response is None:
                return {"data": [{"taskType": "imageInference", "taskUUID": name, "status": "processing"}]}
            states = {"data": "success", "errors": "error"}
            return {
                place: [{**item, "status": states[place]} for item in items]
                for place, items in response.items()
            }
        if known is None or known[1] is None:
            return json_answer(_errors(_item(404, task)), 404)
        request, response = known
        return {"data": [{"taskType": kind, "taskUUID": name, "request": [request], "response": response}]}

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        del request
        served = find_model("runware", fields.get("model"))
        if served is None:
            message = "Invalid value for 'model' parameter: there is no such model."
            raise FieldError("model", message, "invalidModel")
        return served.order(fields, self.studio.draw_seed())

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return json_answer(_errors(_item(status, {}, detail)), status, headers)

    def invalid(self, error: FieldError) -> Response:
        item: dict[str, Any] = error.item if isinstance(error, _TaskError) else {}
        code = error.code or f"invalid{error.name[:1].upper()}{error.name[1:]}"
        content = {"code": code, "message": str(error), "parameter": error.name, **item}
        return json_answer(_errors(content), 400)


def _tasks(body: bytes) -> list[dict[str, Any]] | None:
    """Return the tasks of a request, None where the body is no array of tasks."""
    try:
        tasks = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        return None
    return tasks


def _status(answer: _Answer) -> int:
    """Return the HTTP status that goes with the first error of an answer."""
    code = answer["errors"][0]["code"]
    return next((status for status, (name, _) in _ERRORS.items() if name == code), 400)


class _TaskError(FieldError):
    """A field of a task cannot be used; `item` names the task."""

    item: dict[str, Any]


def _wrong(name: str, message: str, task: dict[str, Any], code: str | None = None) -> _TaskError:
    error = _TaskError(name, message, code)
    error.item = {place: task[place] for place in ("taskType", "taskUUID") if place in task}
    return error


def _uuid(task: dict[str, Any]) -> str:
    """Return the UUID that the client chose.

    Raises:
        FieldError: It is none.
    """
    try:
        return str(uuid.UUID(str(task.get("taskUUID"))))
    except ValueError as error:
        message = "Invalid value for 'taskUUID' parameter. It must be a valid UUIDv4 string."
        raise FieldError("taskUUID", message, "invalidTaskUUID") from error


def _item(status: int, task: dict[str, Any], detail: str | None = None) -> dict[str, Any]:
    code, message = _ERRORS.get(status, _ERRORS[400])
    named: dict[str, Any] = {place: task[place] for place in ("taskType", "taskUUID") if place in task}
    return {"code": code, "message": detail or message, **named}


def _errors(*items: dict[str, Any]) -> _Answer:
    return {"errors": list(items)}
