"""Replicate's wire format: predictions of black-forest-labs/flux-schnell, with and without `Prefer: wait`.

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
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.order import Order
from imagemill.emulator.queue import Queue, Task
from imagemill.emulator.studio import Refusal, Studio
from imagemill.emulator.vendor import Vendor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

__all__ = ["MODEL", "RATIOS", "SCHEMA", "Replicate"]

MODEL = "black-forest-labs/flux-schnell"
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
SCHEMA: dict[str, Any] = {
    "openapi": "3.0.2",
    "info": {"title": "Cog", "version": "0.1.0"},
    "components": {
        "schemas": {
            "Input": {
                "type": "object",
                "title": "Input",
                "required": ["prompt"],
                "properties": {
                    "prompt": {"type": "string", "x-order": 0},
                    "aspect_ratio": {
                        "allOf": [{"$ref": "#/components/schemas/aspect_ratio"}],
                        "default": "1:1",
                        "x-order": 1,
                    },
                    "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
                    "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": 4, "default": 4},
                    "seed": {"type": "integer"},
                    "output_format": {
                        "allOf": [{"$ref": "#/components/schemas/output_format"}],
                        "default": "webp",
                    },
                    "output_quality": {"type": "integer", "minimum": 0, "maximum": 100, "default": 80},
                    "disable_safety_checker": {"type": "boolean", "default": False},
                    "go_fast": {"type": "boolean", "default": True},
                    "megapixels": {"allOf": [{"$ref": "#/components/schemas/megapixels"}], "default": "1"},
                },
            },
            "aspect_ratio": {"type": "string", "title": "aspect_ratio", "enum": list(RATIOS)},
            "output_format": {"type": "string", "title": "output_format", "enum": ["webp", "jpg", "png"]},
            "megapixels": {"type": "string", "title": "megapixels", "enum": ["1", "0.25"]},
        }
    },
}
"""The model's own schema in the shape in which Replicate publishes it; facts read 2026-11-25."""

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
        if not _is_model(request):
            return self.error(404)
        owner, name = MODEL.split("/")
        version = {"id": "hidden", "openapi_schema": SCHEMA}
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
        if not _is_model(request):
            raise FieldError("model", _ERRORS[404][1], "not_found")
        asked = _input(fields)
        ratio = choice(asked, "aspect_ratio", "1:1", tuple(RATIOS))
        part = 2 if choice(asked, "megapixels", "1", ("1", "0.25")) == "0.25" else 1
        seed = None if asked.get("seed") is None else whole(asked, "seed", 0, SEEDS)
        whole(asked, "output_quality", 80, range(101))
        return Order(
            provider="replicate",
            model=MODEL,
            prompt=prompt_of(asked),
            width=RATIOS[ratio][0] // part,
            height=RATIOS[ratio][1] // part,
            steps=whole(asked, "num_inference_steps", 4, range(1, 5)),
            seed=seed,
            drawn_seed=self.studio.draw_seed() if seed is None else seed,
            format=picture_format(asked, "webp", ("webp", "jpg", "png")),
            count=whole(asked, "num_outputs", 1, range(1, 5)),
        )

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
            "model": MODEL,
            "version": "hidden",
            "input": {} if gone else _input(task.asked),
            "logs": "",
            "output": self._queue.links(request, task) if done and not gone else None,
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


def _is_model(request: Request) -> bool:
    return f"{request.path_params['owner']}/{request.path_params['name']}" == MODEL


def _input(body: dict[str, Any]) -> dict[str, Any]:
    fields = body.get("input")
    if not isinstance(fields, dict):
        message = "input is required."
        raise FieldError("", message)
    return fields
