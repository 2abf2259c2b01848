"""A queue of orders that are made without a client waiting, for vendors that are polled."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starlette.requests import Request

    from imagemill.emulator.links import Link
    from imagemill.emulator.studio import Studio, Ticket

__all__ = ["Queue", "Task"]


@dataclass(slots=True)
class Task:
    """A queued order. `started` is monotonic time in seconds; `over` is set once the state is final.

    `asked` is the vendor's own form of the request, as it came.
    """

    id: str
    ticket: Ticket
    asked: dict[str, Any]
    started: float
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: Literal["running", "done", "failed", "flagged", "canceled"] = "running"
    over: asyncio.Event = field(default_factory=asyncio.Event)
    links: list[Link] = field(default_factory=list)

    def end(self, state: Literal["done", "failed", "flagged", "canceled"]) -> None:
        """Bring the task to its end, once."""
        if not self.over.is_set():
            self.state = state
            self.over.set()


class Queue:
    """Makes orders in the background and remembers them."""

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self._studio = studio
        self._tasks: dict[str, Task] = {}

    def add(self, ticket: Ticket, asked: dict[str, Any] | None = None) -> Task:
        """Take an admitted order, which is made from now on; `asked` is what the request said."""
        task = Task(uuid.uuid4().hex, ticket, asked or {}, self._studio.now())
        self._tasks[task.id] = task
        self._studio.spawn(self._run(task))
        return task

    def find(self, task_id: str) -> Task | None:
        """Return a task, None where there is none."""
        return self._tasks.get(task_id)

    def newest(self, since: datetime) -> list[Task]:
        """Return the tasks created since then, the newest first."""
        return [task for task in reversed(self._tasks.values()) if task.created_at >= since]

    def cancel(self, task: Task) -> None:
        """End a task that is not over, without a charge."""
        if not task.over.is_set():
            self._studio.release(task.ticket)
            task.end("canceled")

    def links(self, request: Request, task: Task, *, signed: bool = False) -> list[str]:
        """Return the links to the pictures of a task: always the same ones, expired or not."""
        if not task.links:
            order, fault = task.ticket.order, task.ticket.fault
            mint = self._studio.links.mint
            task.links = [mint(request, shot, fault, signed=signed) for shot in order.shots(fault)]
        return [link.url for link in task.links]

    async def _run(self, task: Task) -> None:
        ticket = task.ticket
        if ticket.fault in {"fail", "flagged"}:
            await self._studio.pause(ticket.latency_s)
            self._studio.release(ticket)
            task.end("failed" if ticket.fault == "fail" else "flagged")
            return
        images = await self._studio.produce(ticket)
        if images is not None and ticket.fault != "timeout_after_charge":
            task.end("done")
