"""An account at an API that queues, as fal documents its own, and jobs before it, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import anyio

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
        self._waiting: deque[anyio.Event] = deque()

    async def travel(self) -> None:
        """The way to the vendor, or back."""
        await anyio.sleep(self._rng.uniform(0.5, 1.5) * self.transit_s)

    async def request(self, watch: SlotWatch) -> None:
        """Submit, follow the states as they come in, and fetch the image."""
        await self.travel()
        turn = anyio.Event()
        self._waiting.append(turn)
        self._begin_next()
        self.queue_lengths.append((anyio.current_time(), len(self._waiting)))
        await watch("id")
        async with anyio.create_task_group() as events:

            async def report(state: RequestState, made_in_s: float = 0.0) -> None:
                await self.travel()
                watch.enter(state, made_in_s)

            if not turn.is_set():
                await report(RequestState.QUEUED)
            await turn.wait()
            events.start_soon(report, RequestState.IN_PROGRESS)
            latency_s = self._latency()
            await anyio.sleep(latency_s)
            self.in_progress -= 1
            self.made += 1
            self.last_made_at = anyio.current_time()
            self._begin_next()
            await self.travel()
        watch.enter(RequestState.COMPLETED, latency_s)
        await self.travel()
        await self.travel()

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

    def _begin_next(self) -> None:
        for at, slots in self.slots_from.items():
            if anyio.current_time() >= at:
                self.slots = slots
        while self._waiting and self.in_progress < self.slots:
            self.in_progress += 1
            self.most_in_progress = max(self.most_in_progress, self.in_progress)
            self._waiting.popleft().set()


async def _work(queue: VendorQueue, pacer: Pacer, images: int) -> None:
    left = images

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
            group.start_soon(make, await pacer.acquire())

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(feed)


def used_share(queue: VendorQueue, images: int = 1000, known: Limit | None = None) -> float:
    """Images per second, from the first submit to the last image, as a share of what the slots allow."""
    pacer = Pacer(None, queues=True, known=known)
    run(_work, queue, pacer, images)
    return replace(queue).shortest_s(images) / queue.last_made_at
