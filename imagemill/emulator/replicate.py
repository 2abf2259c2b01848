"""Replicate's wire format: predictions of black-forest-labs/flux-schnell, with and without `Prefer: wait`.

Unconfirmed against the vendor: the sizes at 0.25 megapixels, and the words of a flagged prediction.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import Response

from imagemill.emulator.answers import BodyTooLargeError, base_url, json_answer, parse_object, read_body
from imagemill.emulator.faults import STATUS
from imagemill.emulator.fields import SEEDS, FieldError, choice, picture_format, prompt_of, whole
from imagemill.emulator.order import Order
from imagemill.emulator.queue import Queue, Task
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["MODEL", "RATIOS", "Replicate"]

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
_PAGE = 100
_LONG_AGO = "2000-01-01T00:00:00+00:00"
_STATES = {"done": "succeeded", "failed": "failed", "flagged": "failed", "canceled": "canceled"}
_FAILURES = {
    "failed": "Prediction failed unexpectedly.",
    "flagged": "NSFW content detected. Try running it again, or try a different prompt.",
}


class Replicate:
    """Answers like Replicate's HTTP API."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio
        self._queue = Queue(studio)

    async def create(self, request: Request) -> Response:
        """Answer `POST /v1/models/{owner}/{name}/predictions`."""
        admitted = await self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        ticket, asked = admitted
        early = self._early(ticket)
        if early is not None:
            return early
        task = self._queue.add(ticket, asked)
        await self._wait(task, request.headers.get("prefer", ""))
        return self._prediction(request, task, 201)

    async def _admit(self, request: Request) -> tuple[Ticket, dict[str, Any]] | Response:
        try:
            body = await read_body(request)
        except BodyTooLargeError:
            return _error(413)
        self._studio.stats.keep(request.url.path, request.headers.raw, body)
        if not self._known(request):
            return _error(401)
        if f"{request.path_params['owner']}/{request.path_params['name']}" != MODEL:
            return _error(404)
        try:
            asked = _input(parse_object(body))
            return self._studio.admit(self._order(asked)), asked
        except FieldError as invalid:
            return _error(422, f"- input.{invalid.name}: {invalid}\n")
        except Refusal as refusal:
            return self._throttled(refusal.wait_s) if refusal.status == 429 else _error(402)

    def _early(self, ticket: Ticket) -> Response | None:
        """Return the answer of a fault of the submit itself, None without one."""
        if ticket.fault not in STATUS:
            return self._studio.early(ticket, json_answer({"ok": True}, 201))
        self._studio.release(ticket)
        status = int(ticket.fault)
        if status == 429:
            return self._throttled(1)
        return _error(status, headers=self._studio.fault_headers(status))

    async def show(self, request: Request) -> Response:
        """Answer `GET /v1/predictions/{id}`."""
        wait_s = self._studio.poll()
        if wait_s:
            return self._throttled(wait_s)
        task = self._task(request)
        return task if not isinstance(task, Task) else self._prediction(request, task)

    async def predictions(self, request: Request) -> Response:
        """Answer `GET /v1/predictions`: a page of predictions, the newest first."""
        if not self._known(request):
            return _error(401)
        query = request.query_params
        try:
            since = datetime.fromisoformat(query.get("created_after", _LONG_AGO))
            page = int(query.get("cursor", 0))
        except ValueError:
            return _error(422)
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
        await self._studio.wait(task.over, seconds)

    def _known(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() in {"bearer", "token"} and self._studio.accepts(key)

    def _task(self, request: Request) -> Task | Response:
        if not self._known(request):
            return _error(401)
        return self._queue.find(request.path_params["id"]) or _error(404)

    def _order(self, fields: dict[str, Any]) -> Order:
        ratio = choice(fields, "aspect_ratio", "1:1", tuple(RATIOS))
        part = 2 if choice(fields, "megapixels", "1", ("1", "0.25")) == "0.25" else 1
        seed = None if fields.get("seed") is None else whole(fields, "seed", 0, SEEDS)
        whole(fields, "output_quality", 80, range(101))
        return Order(
            provider="replicate",
            model=MODEL,
            prompt=prompt_of(fields),
            width=RATIOS[ratio][0] // part,
            height=RATIOS[ratio][1] // part,
            steps=whole(fields, "num_inference_steps", 4, range(1, 5)),
            seed=seed,
            drawn_seed=self._studio.draw_seed() if seed is None else seed,
            format=picture_format(fields, "webp", ("webp", "jpg", "png")),
            count=whole(fields, "num_outputs", 1, range(1, 5)),
        )

    def _throttled(self, wait_s: float | None) -> Response:
        seconds = max(1, math.ceil(wait_s or 1))
        headers = {"retry-after": str(seconds)} if wait_s and self._studio.settings.retry_after else {}
        detail = f"Request was throttled. Your rate limit resets in ~{seconds}s."
        return json_answer({"detail": detail, "status": 429}, 429, headers)

    def _prediction(self, request: Request, task: Task, status: int = 200) -> Response:
        return json_answer(self._state(request, task), status)

    def _state(self, request: Request, task: Task) -> dict[str, Any]:
        root = base_url(request)
        elapsed_s = self._studio.now() - task.started
        done = task.state == "done"
        running = "starting" if elapsed_s < 0.1 * task.ticket.latency_s else "processing"
        content: dict[str, Any] = {
            "id": task.id,
            "model": MODEL,
            "version": "hidden",
            "input": task.asked,
            "logs": "",
            "output": self._queue.links(request, task) if done else None,
            "data_removed": False,
            "error": _FAILURES.get(task.state),
            "status": _STATES.get(task.state, running),
            "created_at": task.created_at.isoformat(),
            "urls": {
                "get": f"{root}/v1/predictions/{task.id}",
                "cancel": f"{root}/v1/predictions/{task.id}/cancel",
            },
        }
        if done:
            content["metrics"] = {"predict_time": round(task.ticket.latency_s, 6)}
        return content


def _input(body: dict[str, Any] | None) -> dict[str, Any]:
    fields = (body or {}).get("input")
    if not isinstance(fields, dict):
        message = "input is required."
        raise FieldError("", message)
    return fields


def _error(status: int, detail: str | None = None, *, headers: dict[str, str] | None = None) -> Response:
    title, usual = _ERRORS.get(status, _ERRORS[400])
    return json_answer({"title": title, "detail": detail or usual, "status": status}, status, headers)
