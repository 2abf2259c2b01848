"""The studio: what happens behind every vendor's wire format.

It admits orders within limits and credit, draws faults, lets orders wait for a slot where the vendor queues,
waits the latency while the pictures are drawn, and charges exactly what was made.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imagemill.emulator.answers import Connections, Hang, Reset, gateway_page
from imagemill.emulator.bill import Bill
from imagemill.emulator.faults import CHARGED, FaultPlan
from imagemill.emulator.gallery import Gallery
from imagemill.emulator.limits import DynamicRate, Limits, TokenBucket
from imagemill.emulator.links import Links
from imagemill.emulator.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.responses import Response

    from imagemill.emulator.order import Order, Shot
    from imagemill.emulator.settings import Settings

__all__ = ["Refusal", "Studio", "Ticket"]


class Refusal(Exception):  # noqa: N818 - a refusal is an answer of the vendor, not our error.
    """An order was not admitted: `status` 429, 503 or 402; `wait_s` in seconds where it is known.

    `limit` says which limit it met: "concurrency", "rate", "capacity" or "credit".
    """

    def __init__(self, status: int, limit: str, wait_s: float | None = None) -> None:
        """Refuse with this status."""
        super().__init__(status, limit, wait_s)
        self.status = status
        self.limit = limit
        self.wait_s = wait_s

    @property
    def header(self) -> str | None:
        """The value of Retry-After: whole seconds, rounded up; None where it is unknown."""
        return None if self.wait_s is None else str(max(1, math.ceil(self.wait_s)))


@dataclass(slots=True, eq=False)
class Ticket:
    """An admitted order, which holds or waits for a slot until it is released. Times in monotonic seconds.

    It is charged to the bill that was open when it was admitted. `asked` is the request as the vendor's own
    module reads it; `turn` is set once the order has a slot, or never will have one.
    """

    order: Order
    fault: str | None
    latency_s: float
    bill: Bill
    admitted_at: float
    asked: dict[str, Any] = field(default_factory=dict)
    began_at: float | None = None
    place: int | None = None
    holds_credit: bool = False
    released: bool = False
    turn: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, now: float) -> None:
        """Take the slot that became free."""
        self.began_at = now
        self.turn.set()

    @property
    def holds_slot(self) -> bool:
        """Whether the order is being worked on."""
        return self.began_at is not None and not self.released


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
        self.links = Links(self.picture, self.connections, self.stats, clock)
        self.faults = FaultPlan(settings.faults, settings.seed)
        self.dynamic: DynamicRate | None = None
        self._clock = clock
        self._polls: TokenBucket | None = None
        self._arrivals = 0
        self._pauses: set[asyncio.Future[bool]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_line: set[Ticket] = set()
        self._closing = False
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take other settings into use; requests in flight keep theirs."""
        self.settings = settings
        now = self._clock()
        rate = settings.polls_per_minute
        self._polls = TokenBucket(rate, max(1, int(rate / 60)), now) if rate else None
        self.limits.configure(settings.max_concurrent, settings.per_minute, settings.burst, now)
        self.dynamic = self._moving(settings, now)
        self.links.ttl_s = settings.link_ttl_s
        self.faults.configure(settings.faults, settings.seed)

    def _moving(self, settings: Settings, now: float) -> DynamicRate | None:
        base = settings.dynamic_per_minute
        if base is None:
            return None
        rate = self.dynamic or DynamicRate(base, now)
        rate.reshape(
            base,
            now,
            growth=settings.dynamic_growth,
            window_s=settings.dynamic_window_s,
            capacity_per_s=settings.capacity_per_s,
        )
        return rate

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
            "queued": self.limits.waiting,
        }

    def draw_seed(self) -> int:
        """Return a seed for a request that leaves it open."""
        return random.Random(f"seed:{self.settings.seed}:{self._arrivals}").getrandbits(31)

    def accepts(self, key: str, *, admin: bool = False) -> bool:
        """Say whether a key may use the API, or read its bill as an `admin`."""
        admins, users = self.settings.admin_keys, self.settings.api_keys
        if key in admins or (admin and admins):
            return key in admins
        return key in users if users else bool(key.strip())

    def poll(self) -> float:
        """Count a question about a queued request; return 0, or the seconds it should have waited."""
        self.stats.polls += 1
        return self._polls.take(self._clock()) if self._polls is not None else 0.0

    def admit(self, order: Order, *, queues: bool = False, moves: bool = False) -> Ticket:
        """Admit an order and draw its fault.

        Where the vendor `queues`, an order beyond its slots is admitted and waits: see :meth:`line_up`. Where
        its limit `moves`, the dynamic rate counts besides the fixed ones.

        Raises:
            Refusal: The credit is exhausted or a limit is reached.
        """
        settings, now = self.settings, self._clock()
        if not self.bill.covers(order.count, settings.credit_images):
            raise Refusal(402, "credit")
        refused = self.limits.take_token(now) if queues else self.limits.admit(now)
        if refused is None and moves and self.dynamic is not None:
            refused = self.dynamic.take(now)
            if refused is not None:
                self.limits.release()
        if refused is not None:
            raise Refusal(503 if refused.limit == "capacity" else 429, refused.limit, refused.wait_s)
        self._arrivals += 1
        fault = self.faults.draw(order.prompt, self._arrivals)
        latency_s = settings.latency_s
        if latency_s > 0 and settings.latency_sigma > 0:
            draws = random.Random(f"latency:{settings.seed}:{self._arrivals}")
            latency_s *= math.exp(settings.latency_sigma * draws.gauss(0, 1))
        charged = fault is None or fault in CHARGED or fault == "flagged"
        if charged:
            self.bill.reserve(order.count)
        ticket = Ticket(order, fault, latency_s, self.bill, now, holds_credit=charged)
        if not queues:
            ticket.begin(now)
        return ticket

    def line_up(self, ticket: Ticket) -> None:
        """Put an order that has no slot into the line of those that wait for one."""
        self._in_line.add(ticket)

        def begin() -> None:
            self._in_line.discard(ticket)
            ticket.begin(self._clock())

        ticket.place = self.limits.line_up(begin)

    def position(self, ticket: Ticket) -> int:
        """Return how many orders are ahead of one that waits."""
        return 0 if ticket.place is None else self.limits.position(ticket.place)

    async def produce(self, ticket: Ticket) -> list[bytes] | None:
        """Make and charge the pictures while the latency passes; None when there will be none."""
        await ticket.turn.wait()
        try:
            if self._closing or ticket.released:
                return None
            shots = ticket.order.shots(ticket.fault)
            drawing = asyncio.gather(*map(self.picture, shots))
            if ticket.latency_s > 0:
                await self.pause(ticket.latency_s)
            images = await drawing
            if self._closing or ticket.released:
                return None
            ticket.bill.charge(ticket.order)
            if self.dynamic is not None:
                self.dynamic.succeeded(self._clock())
            return images
        finally:
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Give back the slot of a ticket, or its place in line, and the credit held for it; once only."""
        if ticket.released:
            return
        held = ticket.holds_slot
        ticket.released = True
        if held:
            self.limits.release()
        elif ticket.place is not None:
            self.limits.leave(ticket.place)
            self._in_line.discard(ticket)
        ticket.turn.set()
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
        for ticket in self._in_line:
            ticket.turn.set()
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
