"""fal's wire format: the queue, and the synchronous form that stands for fal.run.

Unconfirmed against the vendor: some values of x-fal-error-type, the status of a fault where the
vendor's gateway answers by itself, and the largest sides of a picture.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

from imagemill.emulator.answers import (
    BodyTooLargeError,
    Cut,
    base64_text,
    base_url,
    json_answer,
    parse_object,
    read_body,
)
from imagemill.emulator.fal_input import MODEL, FalInput, InvalidInputError, read_input
from imagemill.emulator.faults import STATUS
from imagemill.emulator.gallery import spoil
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from imagemill.emulator.links import Link

__all__ = ["APPLICATION", "PATH", "Fal"]

APPLICATION = "/fal-ai/flux"
PATH = f"{APPLICATION}/schnell"
_QUEUE_SHARE = 0.2
_LONG_AGO = "2000-01-01T00:00:00+00:00"
_COMMENT_S = 15.0
_LOCKED = "User is locked. Reason: Exhausted balance."
_DETAILS = {
    400: ("Bad request.", "bad_request"),
    401: ("Authentication is required to access this application.", "unauthorized"),
    403: (_LOCKED, "user_locked"),
    404: ("Request not found.", "bad_request"),
    413: ("The request body is too large.", "bad_request"),
    422: ("The request is invalid.", "bad_request"),
    429: ("The concurrent requests limit was reached; try again later.", "rate_limited"),
    499: ("The request was cancelled.", "client_cancelled"),
    500: ("Internal server error.", "internal_error"),
    502: ("The runner could not be reached.", "runner_connection_error"),
    503: ("No runner is available.", "runner_scheduling_failure"),
    504: ("The request timed out.", "request_timeout"),
}


@dataclass(slots=True)
class _Job:
    """A queued request; `started` is monotonic time in seconds."""

    id: str
    ticket: Ticket
    asked: FalInput
    started: float
    sent_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    status: int | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    cut: bool = False
    links: list[Link] = field(default_factory=list)

    def end(self, status: int) -> None:
        """Take the status of its result."""
        self.status = status
        self.ended_at = datetime.now(UTC)
        self.over.set()


class Fal:
    """Answers like fal's queue and like fal.run."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio
        self._jobs: dict[str, _Job] = {}

    async def submit(self, request: Request) -> Response:
        """Answer a submit to the queue: the links of the request, which runs from now on."""
        admitted = await self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        ticket, asked = admitted
        early = self._early(ticket)
        if early is not None:
            return early
        job = _Job(uuid.uuid4().hex, ticket, asked, self._studio.now())
        self._jobs[job.id] = job
        self._studio.spawn(self._run(job))
        links = _job_links(request, job.id)
        return _answer({"request_id": job.id, **links, "queue_position": 0}, request_id=job.id)

    async def run(self, request: Request) -> Response:
        """Answer the synchronous form: the result itself."""
        admitted = await self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        ticket, asked = admitted
        early = self._early(ticket)
        if early is not None:
            return early
        if ticket.fault == "fail":
            self._studio.release(ticket)
            return _error(500)
        job = _Job(uuid.uuid4().hex, ticket, asked, self._studio.now())
        images = await self._studio.produce(ticket)
        if images is None or ticket.fault == "timeout_after_charge":
            return self._studio.hang()
        return await self._result(request, job)

    async def status(self, request: Request) -> Response:
        """Answer a poll: 202 until the request is completed."""
        if self._studio.poll():
            return _error(429)
        job = self._job(request)
        if isinstance(job, Response):
            return job
        return _answer(self._state(request, job), 202 if job.status is None else 200, request_id=job.id)

    async def status_stream(self, request: Request) -> Response:
        """Answer with a server-sent event a state, until the request is completed."""
        if self._studio.poll():
            return _error(429)
        job = self._job(request)
        if isinstance(job, Response):
            return job

        async def events() -> AsyncIterator[bytes]:
            state = ""
            while True:
                content = self._state(request, job)
                if content["status"] != state:
                    state = content["status"]
                    yield b"data: " + json.dumps(content).encode() + b"\n\n"
                else:
                    yield b": still here\n\n"
                if state == "COMPLETED":
                    return
                next_s = _COMMENT_S
                if state == "IN_QUEUE":
                    next_s = job.started + _QUEUE_SHARE * job.ticket.latency_s - self._studio.now() + 0.001
                if not await self._studio.wait(job.over, next_s):
                    return

        return StreamingResponse(events(), media_type="text/event-stream")

    async def result(self, request: Request) -> Response:
        """Answer `GET response_url`: the result, or 400 while the request is in progress."""
        job = self._job(request)
        if isinstance(job, Response):
            return job
        if job.status is None:
            return _error(400, "Request is still in progress", request_id=job.id)
        if job.status != HTTPStatus.OK:
            return _error(job.status, request_id=job.id)
        return await self._result(request, job)

    async def cancel(self, request: Request) -> Response:
        """Answer `PUT cancel_url`: a request that is not completed ends, without a charge."""
        job = self._job(request)
        if isinstance(job, Response):
            return job
        if job.status is not None:
            return _answer({"status": "ALREADY_COMPLETED"}, 400, request_id=job.id)
        job.end(499)
        self._studio.release(job.ticket)
        return _answer({"status": "CANCELLATION_REQUESTED"}, 202, request_id=job.id)

    async def requests(self, request: Request) -> Response:
        """Answer `GET /v1/models/requests/by-endpoint`: the requests that are over, the newest first."""
        if not self._known(request):
            return _error(401)
        query = request.query_params
        try:
            start = datetime.fromisoformat(query.get("start", _LONG_AGO))
            size, page = min(100, int(query.get("limit", 50))), int(query.get("cursor", 0))
        except ValueError:
            return _error(422)
        over = [
            job
            for job in self._jobs.values()
            if job.ended_at and job.ended_at >= start and query.get("endpoint_id") == MODEL
        ]
        over.sort(key=lambda job: job.ended_at or start, reverse=True)
        items = [self._past(job) for job in over[page * size : (page + 1) * size]]
        if query.get("expand") != "payloads":
            items = [{name: item[name] for name in item if name != "json_input"} for item in items]
        more = len(over) > (page + 1) * size
        return _answer({"items": items, "has_more": more, "next_cursor": str(page + 1) if more else None})

    @staticmethod
    def _past(job: _Job) -> dict[str, Any]:
        return {
            "request_id": job.id,
            "endpoint_id": MODEL,
            "sent_at": job.sent_at.isoformat(),
            "ended_at": job.ended_at.isoformat() if job.ended_at else None,
            "status_code": job.status,
            "json_input": job.asked.fields,
        }

    async def unknown(self, request: Request) -> Response:
        """Answer a path that names no application of the emulator."""
        return _error(404, f"Application {request.url.path[1:81]!r} was not found.")

    async def _admit(self, request: Request) -> tuple[Ticket, FalInput] | Response:
        try:
            body = await read_body(request)
        except BodyTooLargeError:
            return _error(413)
        self._studio.stats.keep(request.url.path, request.headers.raw, body)
        if not self._known(request):
            return _error(401)
        try:
            asked = read_input(parse_object(body), self._studio.draw_seed())
        except InvalidInputError as invalid:
            return _error(422, [invalid.as_dict()])
        try:
            return self._studio.admit(asked.order), asked
        except Refusal as refusal:
            seconds = refusal.header if self._studio.settings.retry_after else None
            headers = {"retry-after": seconds} if seconds else {}
            exhausted = refusal.status == HTTPStatus.PAYMENT_REQUIRED
            return _error(403 if exhausted else 429, headers=headers)

    def _known(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "key" and self._studio.accepts(key)

    def _state(self, request: Request, job: _Job) -> dict[str, Any]:
        content: dict[str, Any] = {"request_id": job.id, **_job_links(request, job.id)}
        if job.status is None:
            elapsed_s = self._studio.now() - job.started
            if elapsed_s < _QUEUE_SHARE * job.ticket.latency_s:
                return content | {"status": "IN_QUEUE", "queue_position": 0}
            return content | {"status": "IN_PROGRESS", "logs": None}
        content |= {"status": "COMPLETED", "logs": None, "metrics": {}}
        if job.status == HTTPStatus.OK:
            content["metrics"] = {"inference_time": round(job.ticket.latency_s, 6)}
        else:
            detail, kind = _DETAILS[job.status]
            content |= {"error": detail, "error_type": kind}
        return content

    def _job(self, request: Request) -> _Job | Response:
        if not self._known(request):
            return _error(401)
        job = self._jobs.get(request.path_params["request_id"])
        return _error(404) if job is None else job

    def _early(self, ticket: Ticket) -> Response | None:
        """Return the answer of a fault of the submit itself, None without one."""
        if ticket.fault in STATUS:
            self._studio.release(ticket)
            status = 403 if ticket.fault == "402" else int(ticket.fault)
            return _error(status, headers=self._studio.fault_headers(status))
        return self._studio.early(ticket, json_answer({"ok": True, "job": {"state": "new"}}))

    async def _run(self, job: _Job) -> None:
        if job.ticket.fault == "fail":
            await self._studio.pause(job.ticket.latency_s)
            self._studio.release(job.ticket)
            job.end(job.status or 500)
            return
        images = await self._studio.produce(job.ticket)
        if images is not None and job.ticket.fault != "timeout_after_charge":
            job.end(200)

    async def _result(self, request: Request, job: _Job) -> Response:
        studio = self._studio
        order, fault = job.ticket.order, job.ticket.fault
        shots = order.shots(fault)
        if job.asked.inline:
            images = [spoil(await studio.picture(shot), fault) for shot in shots]
            urls = [f"data:image/{order.format};base64,{base64_text(i).decode()}" for i in images]
        else:
            urls = self._links(request, job)
        content = {
            "images": [
                {
                    "url": url,
                    "width": order.width,
                    "height": order.height,
                    "content_type": f"image/{order.format}",
                }
                for url in urls
            ],
            "timings": {"inference": round(job.ticket.latency_s, 6)},
            "seed": order.drawn_seed,
            "has_nsfw_concepts": [fault in {"black", "flagged"}] * order.count,
            "prompt": order.prompt,
        }
        answer = _answer(content, request_id=job.id)
        if fault == "reset_body" and job.asked.inline and not job.cut:
            job.cut = True
            return Cut(studio.connections, answer)
        return answer

    def _links(self, request: Request, job: _Job) -> list[str]:
        """Return the image links of a result; expired ones are minted anew."""
        links = self._studio.links
        if not job.links:
            fault = job.ticket.fault
            job.links = [links.mint(request, s, fault) for s in job.ticket.order.shots(fault)]
            return [link.url for link in job.links]
        for index, link in enumerate(job.links):
            if links.expired(link):
                again = None if link.fault == "expired_link" else link.fault
                job.links[index] = links.mint(request, link.shot, again)
        return [link.url for link in job.links]


def _job_links(request: Request, request_id: str) -> dict[str, str]:
    root = f"{base_url(request)}{APPLICATION}/requests/{request_id}"
    return {
        "response_url": root,
        "status_url": f"{root}/status",
        "cancel_url": f"{root}/cancel",
    }


def _answer(
    content: object,
    status: int = 200,
    *,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    name = request_id or uuid.uuid4().hex
    return json_answer(content, status, {**(headers or {}), "x-fal-request-id": name})


def _error(
    status: int,
    detail: object = None,
    *,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    usual, kind = _DETAILS.get(status, _DETAILS[400])
    named = {**(headers or {}), "x-fal-error-type": kind}
    return _answer({"detail": detail or usual}, status, request_id=request_id, headers=named)
