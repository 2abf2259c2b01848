"""An account at an API that queues, as fal documents its own, and jobs before it, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from imagemill.engine.limits.pacer import Limit, Pacer, Slot, SlotWatch
from imagemill.request_watch import RequestState
from tests.virtual_time import run


@dataclass
class VendorQueue:
    """Makes ``slots`` images at once and lets all other requests wait, first come, first served.

    ``latency_s`` is the median, ``transit_s`` the mean time from the client to the vendor and again back,
    which events and images take as well.
    """

    slots: int
    latency_s: float
    seed: int = 1
    transit_s: float = 0.05
    slots_from: Mapping[float, int] = field(default_factory=dict)
    in_progress: int = 0
    made: int = 0
    last_made_at: float = 0.0
    most_in_progress: int = 0
    queue_lengths: list[tuple[float, int]] = field(default_factory=list)
    queued_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._latency_rng = random.Random(self.seed + 1)
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def request(self, watch: SlotWatch) -> None:
        """Submit, follow the states as they come in, and fetch the image."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._travel_s())
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        self._begin_next(loop.time())
        self.queue_lengths.append((loop.time(), len(self._waiting)))
        await watch("id")
        told_at = loop.time()
        if not turn.done():
            told_at += self._travel_s()
            loop.call_at(told_at, watch.enter, RequestState.QUEUED, 0.0)
            await turn
        told_at = max(told_at, loop.time() + self._travel_s())
        loop.call_at(told_at, watch.enter, RequestState.IN_PROGRESS, 0.0)
        latency_s = self._latency()
        await asyncio.sleep(latency_s)
        self.in_progress -= 1
        self.made += 1
        self.last_made_at = loop.time()
        self._begin_next(loop.time())
        await asyncio.sleep(max(self._travel_s(), told_at - loop.time() + 1e-6))
        watch.enter(RequestState.COMPLETED, latency_s)
        await asyncio.sleep(self._travel_s() + self._travel_s())

    def _travel_s(self) -> float:
        """The time of one way to the vendor, or back."""
        return self._rng.uniform(0.5, 1.5) * self.transit_s

    def shortest_s(self, images: int) -> float:
        """How long the same images take if all are in the queue from the beginning."""
        free_at = [0.0] * self.slots
        for _ in range(images):
            heapq.heapreplace(free_at, free_at[0] + self._latency())
        return max(free_at)

    def _latency(self) -> float:
        return self._latency_rng.lognormvariate(math.log(self.latency_s), 0.35)

    @property
    def longest_queue(self) -> int:
        """Most requests that waited at once."""
        return self.longest_queue_since(0.0)

    def longest_queue_since(self, at: float) -> int:
        """The same from a moment on, in seconds."""
        return max(length for then, length in self.queue_lengths if then >= at)

    def _begin_next(self, now: float) -> None:
        for at, slots in self.slots_from.items():
            if now >= at:
                self.slots = slots
        while self._waiting and self.in_progress < self.slots:
            self.in_progress += 1
            self.most_in_progress = max(self.most_in_progress, self.in_progress)
            self._waiting.popleft().set_result(None)


async def _work(queue: VendorQueue, images: int, known: Limit | None) -> None:
    left = images
    pacer = Pacer(None, queues=True, known=known, clock=asyncio.get_running_loop().time)

    async def accepted(_: str, _charged_usd: float | None = None) -> None:
        return

    async def make(slot: Slot) -> None:
        watch = SlotWatch(accepted, pacer, slot)
        await queue.request(watch)
        queue.queued_s.append(watch.queued_s)
        slot.served = True
        pacer.release(slot)

    async def feed() -> None:
        nonlocal left
        while left:
            left -= 1
            group.create_task(make(await pacer.acquire()))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(feed())


def used_share(queue: VendorQueue, images: int = 1000, known: Limit | None = None) -> float:
    """Images per second, from the first submit to the last image, as a share of what the slots allow."""
    run(_work, queue, images, known)
    return replace(queue).shortest_s(images) / queue.last_made_at
