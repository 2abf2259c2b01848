"""The studio: what happens behind every vendor's wire format.

It admits orders within limits and credit, draws faults, waits the latency while the pictures
are drawn, and charges exactly what was made.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from imagemill.emulator.answers import Connections, Hang, Reset, gateway_page
from imagemill.emulator.bill import Bill
from imagemill.emulator.faults import CHARGED, FaultPlan
from imagemill.emulator.gallery import Gallery
from imagemill.emulator.limits import Limits, TokenBucket
from imagemill.emulator.links import Links
from imagemill.emulator.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.responses import Response

    from imagemill.emulator.order import Order, Shot
    from imagemill.emulator.settings import Settings

__all__ = ["Refusal", "Studio", "Ticket"]


class Refusal(Exception):  # noqa: N818 - a refusal is an answer of the vendor, not our error.
    """An order was not admitted: `status` 429 or 402; `wait_s` in seconds where it is known."""

    def __init__(self, status: int, wait_s: float | None = None) -> None:
        """Refuse with this status."""
        super().__init__(status, wait_s)
        self.status = status
        self.wait_s = wait_s

    @property
    def header(self) -> str | None:
        """The value of Retry-After: whole seconds, rounded up; None where it is unknown."""
        return None if self.wait_s is None else str(max(1, math.ceil(self.wait_s)))


@dataclass(slots=True)
class Ticket:
    """An admitted order, which holds a slot until it is released. `latency_s` is in seconds.

    It is charged to the bill that was open when it was admitted.
    """

    order: Order
    fault: str | None
    latency_s: float
    bill: Bill
    holds_credit: bool = False
    released: bool = False


class Studio:
    """The vendor-neutral inside of an emulator; lives in one event loop."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with these settings and a monotonic clock in seconds."""
        self.settings = settings
        self.connections = Connections()
        self.limits = Limits()
        self.bill = Bill()
        self.stats = Stats()
        self.gallery = Gallery()
        self.links = Links(self, clock)
        self.faults = FaultPlan(settings.faults, settings.seed)
        self._clock = clock
        self._polls: TokenBucket | None = None
        self._arrivals = 0
        self._pauses: set[asyncio.Future[bool]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take other settings into use; requests in flight keep theirs."""
        self.settings = settings
        rate = settings.polls_per_minute
        self._polls = TokenBucket(rate, max(1, int(rate / 60)), self._clock()) if rate else None
        self.limits.configure(settings.max_concurrent, settings.per_minute, settings.burst, self._clock())
        self.faults.configure(settings.faults, settings.seed)

    def reset(self) -> None:
        """Clear the statistics, the peak and the markers used up, and open a new bill."""
        self.bill = Bill()
        self.stats.reset()
        self.faults.reset()
        self._arrivals = 0
        self.limits.peak_in_flight = self.limits.in_flight

    def now(self) -> float:
        """Return the monotonic time, in seconds."""
        return self._clock()

    def report(self) -> dict[str, Any]:
        """Return the statistics as plain values; times are in Unix seconds."""
        return self.stats.as_dict() | {
            "in_flight": self.limits.in_flight,
            "peak_in_flight": self.limits.peak_in_flight,
        }

    def draw_seed(self) -> int:
        """Return a seed for a request that leaves it open."""
        return random.Random(f"seed:{self.settings.seed}:{self._arrivals}").getrandbits(31)

    def accepts(self, key: str) -> bool:
        """Say whether a key may use the API."""
        allowed = self.settings.api_keys
        return key in allowed if allowed else bool(key.strip())

    def poll(self) -> float:
        """Count a question about a queued request; return 0, or the seconds it should have waited."""
        self.stats.polls += 1
        return self._polls.take(self._clock()) if self._polls is not None else 0.0

    def admit(self, order: Order) -> Ticket:
        """Admit an order and draw its fault.

        Raises:
            Refusal: The credit is exhausted or a limit is reached. Nothing is consumed.
        """
        settings = self.settings
        if not self.bill.covers(order.count, settings.credit_images):
            raise Refusal(402)
        refused = self.limits.admit(self._clock())
        if refused is not None:
            raise Refusal(429, refused.wait_s)
        self._arrivals += 1
        fault = self.faults.draw(order.prompt, self._arrivals)
        latency_s = settings.latency_s
        if latency_s > 0 and settings.latency_sigma > 0:
            draws = random.Random(f"latency:{settings.seed}:{self._arrivals}")
            latency_s *= math.exp(settings.latency_sigma * draws.gauss(0, 1))
        charged = fault is None or fault in CHARGED or fault == "flagged"
        if charged:
            self.bill.reserve(order.count)
        return Ticket(order, fault, latency_s, self.bill, holds_credit=charged)

    async def produce(self, ticket: Ticket) -> list[bytes] | None:
        """Make and charge the pictures while the latency passes; None when the server stops."""
        try:
            shots = ticket.order.shots(ticket.fault)
            drawing = asyncio.gather(*map(self.picture, shots))
            if ticket.latency_s > 0:
                await self.pause(ticket.latency_s)
            images = await drawing
            if self._closing or ticket.released:
                return None
            ticket.bill.charge(ticket.order)
            return images
        finally:
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Give the slot of a ticket back, and the credit held for it; once only."""
        if ticket.released:
            return
        ticket.released = True
        self.limits.release()
        if ticket.holds_credit:
            ticket.bill.free(ticket.order.count)

    async def picture(self, shot: Shot) -> bytes:
        """Return the encoded picture of a shot."""
        return await self.gallery.picture(shot, fast=self.settings.pictures == "fast")

    def early(self, ticket: Ticket, wrong_shape: Response) -> Response | None:
        """Return the answer of a fault that comes before any picture, None without one."""
        if ticket.fault == "hang":
            return self.hang(lambda: self.release(ticket))
        answers: dict[str | None, Callable[[], Response]] = {
            "reset": lambda: Reset(self.connections),
            "html": gateway_page,
            "wrong_shape": lambda: wrong_shape,
        }
        if ticket.fault not in answers:
            return None
        self.release(ticket)
        return answers[ticket.fault]()

    def fault_headers(self, status: int) -> dict[str, str]:
        """Return the Retry-After header of a status fault: a second, where the wait is known."""
        known = {HTTPStatus.SERVICE_UNAVAILABLE: True}
        known[HTTPStatus.TOO_MANY_REQUESTS] = self.settings.retry_after
        return {"retry-after": "1"} if known.get(HTTPStatus(status)) else {}

    def hang(self, done: Callable[[], None] | None = None) -> Response:
        """Return an answer that does not come."""
        hang_s = self.settings.hang_s
        return Hang(self.connections, lambda: self.pause(hang_s), done)

    async def pause(self, seconds: float) -> bool:
        """Wait; return False when the server stops meanwhile, which ends the wait."""
        if self._closing:
            return False
        loop = asyncio.get_running_loop()
        over: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _finish, over)
        self._pauses.add(over)
        try:
            return await over
        finally:
            timer.cancel()
            self._pauses.discard(over)

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for an event for so long; return False when the server stops meanwhile."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(self.pause(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        return not self._closing

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run work that goes on without a client."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """End all waits and cut all connections off."""
        self._closing = True
        self.gallery.stop()
        for over in self._pauses:
            if not over.done():
                over.set_result(False)
        self.connections.abort_all()

    async def close(self) -> None:
        """Wait for the work that goes on, and end the threads."""
        self.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.gallery.close()


def _finish(over: asyncio.Future[bool]) -> None:
    if not over.done():
        over.set_result(True)
