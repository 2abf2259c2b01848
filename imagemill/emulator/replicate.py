"""Replicate's wire format: predictions of official models, with and without `Prefer: wait`.

Confirmed by replicate.com/docs/reference/http, read 2026-11-25: 600 predictions a minute (`per_minute`), a
429 with `{detail, status, retry_after}` beyond; lists of 100 with their input; a model's own schema at
latest_version.openapi_schema; inputs and outputs are removed about an hour after the end.

Unconfirmed: the sizes at 0.25 megapixels, and the words of a flagged prediction. A limit of requests at once
is not documented: where `max_concurrent` is set, the answer is that of the rate limit.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode

from starlette.responses import Response

from imagemill.emulator.answers import base_url, json_answer
from imagemill.emulator.fields import FieldError
from imagemill.emulator.models import Model, find_model
from imagemill.emulator.queue import Queue, Task
from imagemill.emulator.studio import Refusal, Studio
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from imagemill.emulator.order import Order

__all__ = ["RATIOS", "Replicate"]

RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
"""Width and height in pixels at one megapixel; at a quarter both are halved."""

_LONGEST_WAIT_S = 60
_WAIT = re.compile(r"\bwait(?:=(\d{1,3}))?\b")
_ERRORS = {
    400: ("Bad request", "The request is invalid."),
    401: ("Unauthenticated", "You did not pass a valid authentication token"),
    402: ("Insufficient credit", "You have insufficient credit to run this model."),
    404: ("Not found", "The requested resource could not be found."),
    413: ("Payload too large", "The request body is too large."),
    422: ("Input validation failed", "The input is invalid."),
    500: ("Internal server error", "An unexpected error occurred."),
    502: ("Bad gateway", "The upstream server could not be reached."),
    503: ("Service unavailable", "The service is temporarily unavailable."),
    504: ("Gateway timeout", "The upstream server did not answer in time."),
}
_PAGE = 100
_LONG_AGO = "2000-01-01T00:00:00+00:00"
_STATES = {"done": "succeeded", "failed": "failed", "flagged": "failed", "canceled": "canceled"}
_FAILURES = {
    "failed": "Prediction failed unexpectedly.",
    "flagged": "NSFW content detected. Try running it again, or try a different prompt.",
}


class Replicate(Vendor):
    """Answers like Replicate's HTTP API."""

    schemes: ClassVar[frozenset[str]] = frozenset({"bearer", "token"})

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        super().__init__(studio)
        self._queue = Queue(studio)

    async def create(self, request: Request) -> Response:
        """Answer `POST /v1/models/{owner}/{name}/predictions`."""
        ticket = await self.take(request)
        if isinstance(ticket, Response):
            return ticket
        task = self._queue.add(ticket)
        await self._wait(task, request.headers.get("prefer", ""))
        return self._prediction(request, task, 201)

    async def model(self, request: Request) -> Response:
        """Answer `GET /v1/models/{owner}/{name}`: the model, with the schema of its input."""
        if not self.known(request):
            return self.error(401)
        served = _model(request)
        if served is None:
            return self.error(404)
        owner, name = served.name.split("/")
        version = {"id": "hidden", "openapi_schema": _published(served)}
        content = {"owner": owner, "name": name, "visibility": "public", "is_official": True}
        return json_answer(content | {"latest_version": version})

    async def show(self, request: Request) -> Response:
        """Answer `GET /v1/predictions/{id}`."""
        wait_s = self.studio.poll()
        if wait_s:
            return self.refusal(Refusal(429, "rate", wait_s))
        task = self._task(request)
        return task if not isinstance(task, Task) else self._prediction(request, task)

    async def predictions(self, request: Request) -> Response:
        """Answer `GET /v1/predictions`: a page of predictions, the newest first."""
        if not self.known(request):
            return self.error(401)
        query = request.query_params
        try:
            since = datetime.fromisoformat(query.get("created_after", _LONG_AGO))
            page = int(query.get("cursor", 0))
        except ValueError:
            return self.error(422)
        tasks = self._queue.newest(since)
        rest = tasks[(page + 1) * _PAGE :]
        after = urlencode({"created_after": since.isoformat(), "cursor": page + 1})
        return json_answer(
            {
                "previous": None,
                "next": f"{base_url(request)}/v1/predictions?{after}" if rest else None,
                "results": [self._state(request, task) for task in tasks[page * _PAGE : (page + 1) * _PAGE]],
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Answer `POST /v1/predictions/{id}/cancel`."""
        task = self._task(request)
        if not isinstance(task, Task):
            return task
        self._queue.cancel(task)
        return self._prediction(request, task)

    async def _wait(self, task: Task, prefer: str) -> None:
        """Wait for a task as long as the header `Prefer` asks."""
        asked = _WAIT.search(prefer)
        if asked is None:
            return
        seconds = min(int(asked[1] or _LONGEST_WAIT_S), _LONGEST_WAIT_S)
        await self.studio.wait(task.over, seconds)

    def _task(self, request: Request) -> Task | Response:
        if not self.known(request):
            return self.error(401)
        return self._queue.find(request.path_params["id"]) or self.error(404)

    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        served = _model(request)
        if served is None:
            raise FieldError("model", _ERRORS[404][1], "not_found")
        asked = _input(fields)
        return served.order(asked, self.studio.draw_seed(), _size(served.checked(asked)))

    def refusal(self, refusal: Refusal) -> Response:
        seconds = max(1, math.ceil(refusal.wait_s or 1))
        content = {"detail": f"Request was throttled. Your rate limit resets in ~{seconds}s.", "status": 429}
        if refusal.wait_s is None or not self.studio.settings.retry_after:
            return json_answer(content, 429)
        return json_answer(content | {"retry_after": seconds}, 429, {"retry-after": str(seconds)})

    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        title, usual = _ERRORS.get(status, _ERRORS[400])
        return json_answer({"title": title, "detail": detail or usual, "status": status}, status, headers)

    def invalid(self, error: FieldError) -> Response:
        if error.code == "not_found":
            return self.error(404)
        place = f"input.{error.name}" if error.name else "input"
        return self.error(422, f"- {place}: {error}\n")

    def _prediction(self, request: Request, task: Task, status: int = 200) -> Response:
        return json_answer(self._state(request, task), status)

    def _state(self, request: Request, task: Task) -> dict[str, Any]:
        root = base_url(request)
        running_s = self.studio.now() - (task.ticket.began_at or math.inf)
        running = "starting" if running_s < 0.1 * task.ticket.latency_s else "processing"
        done, gone = task.state == "done", self._queue.forgotten(task)
        content: dict[str, Any] = {
            "id": task.id,
            "model": task.ticket.order.model,
            "version": "hidden",
            "input": {} if gone else _input(task.asked),
            "logs": "",
            "output": self._output(request, task) if done and not gone else None,
            "data_removed": gone,
            "error": _FAILURES.get(task.state),
            "status": _STATES.get(task.state, running),
            "created_at": task.created_at.isoformat(),
            "started_at": task.began_at.isoformat() if task.began_at else None,
            "completed_at": task.ended_at.isoformat() if task.ended_at else None,
            "urls": {
                "get": f"{root}/v1/predictions/{task.id}",
                "cancel": f"{root}/v1/predictions/{task.id}/cancel",
            },
        }
        if done:
            content["metrics"] = {"predict_time": round(task.ticket.latency_s, 6)}
        return content

    def _output(self, request: Request, task: Task) -> list[str] | str:
        """Return the links to the pictures; the one link itself where the model's schema says so."""
        links = self._queue.links(request, task)
        served = find_model("replicate", task.ticket.order.model)
        return links[0] if served and served.facts.get("output") == "string" else links


def _model(request: Request) -> Model | None:
    return find_model("replicate", f"{request.path_params['owner']}/{request.path_params['name']}")


def _size(asked: dict[str, Any]) -> tuple[int, int] | None:
    """Return width and height in pixels by the aspect ratio; None where the model has the two themselves."""
    ratio = asked.get("aspect_ratio")
    if ratio is None:
        return None
    if ratio != "custom":
        part = 2 if asked.get("megapixels") == "0.25" else 1
        width, height = RATIOS[ratio]
        return width // part, height // part
    if "width" not in asked or "height" not in asked:
        message = "width and height are required for a custom aspect ratio."
        raise FieldError("width", message)
    return asked["width"], asked["height"]


def _published(model: Model) -> dict[str, Any]:
    """Return a model's schema as Replicate publishes it, where each choice is a schema of its own."""
    schemas: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for order, (name, rule) in enumerate(model.schema["properties"].items()):
        properties[name] = {**rule, "x-order": order}
        if "enum" in rule:
            schemas[name] = {"type": "string", "title": name, "enum": rule["enum"]}
            reference = {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}
            properties[name] = {**reference, "default": rule["default"], "x-order": order}
    schemas["Input"] = {**model.schema, "title": "Input", "properties": properties}
    version = {"title": "Cog", "version": "0.1.0"}
    return {"openapi": "3.0.2", "info": version, "components": {"schemas": schemas}}


def _input(body: dict[str, Any]) -> dict[str, Any]:
    fields = body.get("input")
    if not isinstance(fields, dict):
        message = "input is required."
        raise FieldError("", message)
    return fields
