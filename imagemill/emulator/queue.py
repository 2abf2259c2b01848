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

__all__ = ["End", "Queue", "Task"]

End = Literal["done", "failed", "flagged", "rejected", "late", "canceled"]


@dataclass(slots=True)
class Task:
    """A queued order. `over` is set once the state is final; times are in UTC.

    States: "queued" until it has a slot, "running", and then its end: "rejected" for an input that the model
    does not take, "late" for one that did not begin in time.
    """

    id: str
    ticket: Ticket
    error: Exception | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began_at: datetime | None = None
    ended_at: datetime | None = None
    end: End | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    links: list[Link] = field(default_factory=list)
    cut: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """The vendor's own form of the request, as it came."""
        return self.ticket.asked

    @property
    def state(self) -> End | Literal["queued", "running"]:
        """What the task is doing."""
        return self.end or ("queued" if self.ticket.began_at is None else "running")

    def finish(self, end: End) -> None:
        """Bring the task to its end, once."""
        if not self.over.is_set():
            self.end = end
            self.ended_at = datetime.now(UTC)
            self.over.set()


class Queue:
    """Makes orders one by one as slots become free, and remembers them."""

    def __init__(self, studio: Studio, *, flags: bool = True) -> None:
        """Make the pictures in this studio; `flags`: a flagged order ends without a picture or a charge."""
        self._studio = studio
        self._failing = {"fail", "flagged"} if flags else {"fail"}
        self._tasks: dict[str, Task] = {}

    def add(self, ticket: Ticket, *, error: Exception | None = None, start_s: float | None = None) -> Task:
        """Take an admitted order, which is made from now on.

        With an `error` it is rejected once it has a slot; after `start_s` seconds without one it is late.
        """
        task = Task(uuid.uuid4().hex, ticket, error)
        self._tasks[task.id] = task
        if ticket.began_at is None:
            self._studio.line_up(ticket)
        self._studio.spawn(self._run(task))
        if start_s is not None and ticket.began_at is None:
            self._studio.spawn(self._expire(task, start_s))
        return task

    def find(self, task_id: str) -> Task | None:
        """Return a task, None where there is none."""
        return self._tasks.get(task_id)

    def newest(self, since: datetime) -> list[Task]:
        """Return the tasks created since then, the newest first."""
        return [task for task in reversed(self._tasks.values()) if task.created_at >= since]

    def ended(self, since: datetime, until: datetime) -> list[Task]:
        """Return the tasks that ended in this time, the last first."""
        over = [task for task in self._tasks.values() if task.ended_at and since <= task.ended_at < until]
        return sorted(over, key=lambda task: task.ended_at or since, reverse=True)

    def forgotten(self, task: Task) -> bool:
        """Say whether a task ended longer ago than results are kept."""
        if task.ended_at is None:
            return False
        age = datetime.now(UTC) - task.ended_at
        return age.total_seconds() > self._studio.settings.result_ttl_s

    def cancel(self, task: Task) -> None:
        """End a task that is not over, without a charge."""
        if not task.over.is_set():
            self._studio.release(task.ticket)
            task.finish("canceled")

    def links(
        self, request: Request, task: Task, *, signed: bool = False, renewed: bool = False
    ) -> list[str]:
        """Return the links to the pictures of a task: the same ones each time, or `renewed` once expired."""
        links, order, fault = self._studio.links, task.ticket.order, task.ticket.fault
        if not task.links:
            task.links = [links.mint(request, shot, fault, signed=signed) for shot in order.shots(fault)]
        elif renewed:
            for index, link in enumerate(task.links):
                if links.expired(link):
                    again = None if link.fault == "expired_link" else link.fault
                    task.links[index] = links.mint(request, link.shot, again)
        return [link.url for link in task.links]

    async def _run(self, task: Task) -> None:
        ticket = task.ticket
        await ticket.turn.wait()
        if ticket.released or ticket.began_at is None:
            return
        task.began_at = datetime.now(UTC)
        if task.error is not None:
            self._studio.release(ticket)
            task.finish("rejected")
        elif ticket.fault in self._failing:
            await self._studio.pause(ticket.latency_s)
            self._studio.release(ticket)
            task.finish("failed" if ticket.fault == "fail" else "flagged")
        else:
            images = await self._studio.produce(ticket)
            if images is not None and ticket.fault != "timeout_after_charge":
                task.finish("done")

    async def _expire(self, task: Task, start_s: float) -> None:
        if await self._studio.wait(task.ticket.turn, start_s) and not task.ticket.turn.is_set():
            self._studio.release(task.ticket)
            task.finish("late")
