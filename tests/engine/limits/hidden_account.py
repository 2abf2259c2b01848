"""An account with a hidden limit, and the engine's workers before it, for the pacer in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from imagemill.emulator.limits import TokenBucket
from imagemill.engine.limits.pacer import Pacer
from imagemill.errors import RETRY_RULES, ErrorClass
from tests.virtual_time import run

MEAN_LATENCY_S = 0.5 * math.exp(0.35**2 / 2)
"""Mean of a lognormal latency with a median of half a second and a sigma of 0.35."""

_FEEDERS = 4
"""Shards that are worked on at once."""


@dataclass(frozen=True)
class Step:
    """A limit in force from a moment on, in seconds."""

    at: float
    cap: int | None = None
    per_minute: float | None = None
    burst: int = 1

    @property
    def per_s(self) -> float:
        """Images a second that this limit allows."""
        by_cap = self.cap / MEAN_LATENCY_S if self.cap else math.inf
        return min(by_cap, self.per_minute / 60 if self.per_minute else math.inf)


def loop_time() -> float:
    """The running loop's time, in seconds."""
    return asyncio.get_running_loop().time()


class DynamicRate:
    """A limit that follows what succeeded in the past hour, per second: docs.together.ai/docs/rate-limits.

    Requests above it are refused, and so are those within it for which there is no capacity.
    """

    def __init__(self, base_per_minute: float = 60.0, capacity_per_s: float = math.inf) -> None:
        self._base_per_s = base_per_minute / 60
        self._succeeded: deque[float] = deque()
        self._rate = TokenBucket(base_per_minute, self._burst(self._base_per_s), 0.0)
        self._capacity = None
        if capacity_per_s < math.inf:
            self._capacity = TokenBucket(60 * capacity_per_s, self._burst(capacity_per_s), 0.0)
        self._capacity_per_s = capacity_per_s
        self._counted_until = self.allowed = 0.0
        self.refused = Counter[int]()

    @staticmethod
    def _burst(per_s: float) -> int:
        return max(1, int(per_s + 1e-9))

    def per_s(self, now: float) -> float:
        """The rate in force."""
        while self._succeeded and self._succeeded[0] <= now - 3600:
            self._succeeded.popleft()
        return max(self._base_per_s, 2 * len(self._succeeded) / 3600)

    def take(self, now: float) -> bool:
        """Whether a request is taken."""
        per_s = self.per_s(now)
        self.allowed += min(per_s, self._capacity_per_s) * (now - self._counted_until)
        self._counted_until = now
        self._rate.reshape(60 * per_s, self._burst(per_s), now)
        if self._rate.take(now):
            self.refused[429] += 1
        elif self._capacity and self._capacity.take(now):
            self.refused[503] += 1
        else:
            return True
        return False

    def succeeded(self, now: float) -> None:
        """A request was answered with an image."""
        self._succeeded.append(now)


@dataclass
class Account:
    """Hidden limits, one after another. Times in seconds.

    ``retry_after``: a 429 has the wait in whole seconds, rounded up. ``load``: latency grows by this share
    at the cap. ``errors``: share of requests answered with a 500. ``busy``: share refused whatever the pace.
    ``transit_s``: mean time from the client to the account, and again back, which the client counts as
    in flight and the account does not. ``dynamic``: a rate that follows what was used. ``median_s``: latency.
    """

    steps: Sequence[Step]
    seed: int = 1
    retry_after: bool = False
    load: float = 0.0
    errors: float = 0.0
    busy: float = 0.0
    refusal_s: tuple[float, float] = (0.01, 0.06)
    transit_s: float = 0.0
    dynamic: DynamicRate | None = None
    median_s: float = 0.5
    in_flight: int = 0
    served_at: list[float] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)
    refused_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.bucket: TokenBucket | None = None
        self._step: Step | None = None

    def limit(self, now: float) -> Step:
        """The limit in force."""
        return [step for step in self.steps if step.at <= now][-1]

    async def request(self) -> tuple[ErrorClass | None, float | None]:
        """One request: the class of its error, or None, and what Retry-After says."""
        await self._travel()
        answer = await self._answer()
        await self._travel()
        return answer

    async def _travel(self) -> None:
        if self.transit_s:
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * self.transit_s)

    async def _answer(self) -> tuple[ErrorClass | None, float | None]:
        now = loop_time()
        self.sent_at.append(now)
        step = self.limit(now)
        if step is not self._step:
            self._step = step
            if step.per_minute is None:
                self.bucket = None
            elif self.bucket is None:
                self.bucket = TokenBucket(step.per_minute, step.burst, now)
            else:
                self.bucket.reshape(step.per_minute, step.burst, now)
        full = step.cap is not None and self.in_flight >= step.cap
        full = full or bool(self.busy and self.rng.random() < self.busy)
        full = full or bool(self.dynamic and not self.dynamic.take(now))
        wait_s = self.bucket.take(now) if self.bucket and not full else 0.0
        if full or wait_s:
            self.refused_at.append(now)
            await asyncio.sleep(self.rng.uniform(*self.refusal_s))
            return ErrorClass.RATE_LIMITED, float(math.ceil(wait_s)) if self.retry_after and wait_s else None
        self.in_flight += 1
        grown = 1.0 + self.load * (self.in_flight / step.cap if step.cap else 0.0)
        await asyncio.sleep(grown * self.rng.lognormvariate(math.log(self.median_s), 0.35))
        self.in_flight -= 1
        if self.rng.random() < self.errors:
            return ErrorClass.SERVER_ERROR, None
        self.served_at.append(loop_time())
        if self.dynamic:
            self.dynamic.succeeded(self.served_at[-1])
        return None, None


@dataclass(frozen=True)
class Outcome:
    """A run's figures: times in seconds, shares from 0 to 1."""

    images: int
    requests: int
    refused: int
    failed: int
    failed_by_429: int
    wall_s: float
    delivered: float
    settled_s: float
    followed_s: float | None
    concurrency: int

    @property
    def refused_share(self) -> float:
        """429s over requests."""
        return self.refused / self.requests


async def _work(account: Account, pacer: Pacer, images: int) -> tuple[int, int]:
    """Work jobs off as the engine does, by its retry table; jobs that failed, and those for 429s."""
    rng = random.Random(account.seed + 1)
    numbers = iter(range(images))
    failed = failed_by_429 = 0
    pacer.unsent = lambda: images - len(account.served_at) - failed - pacer.in_flight

    async def job(slot: object) -> None:
        nonlocal failed, failed_by_429
        failures: Counter[ErrorClass] = Counter()
        while True:
            error, retry_after_s = await account.request()
            slot.served, slot.refused = error is None, error is ErrorClass.RATE_LIMITED
            slot.retry_after_s = retry_after_s
            pacer.release(slot)
            if error is None:
                return
            failures[error] += 1
            rule = RETRY_RULES[error]
            if failures[error] > rule.retries:
                failed += 1
                failed_by_429 += error is ErrorClass.RATE_LIMITED
                return
            await asyncio.sleep(rule.wait_s(failures[error], retry_after_s, rng))
            slot = await pacer.acquire()

    async def feed() -> None:
        for _ in numbers:
            group.create_task(job(await pacer.acquire()))

    async with asyncio.TaskGroup() as group:
        for _ in range(_FEEDERS):
            group.create_task(feed())
    return failed, failed_by_429


def simulate(account: Account, images: int = 10_000, pacer: Pacer | None = None) -> Outcome:
    """Run the real pacer before an account, in virtual time."""
    if pacer is None:
        pacer = Pacer(None, clock=loop_time)
    failed, failed_by_429 = run(_work, account, pacer, images)
    end = account.served_at[-1]
    edges = [step.at for step in account.steps] + [math.inf]
    allowed = sum(
        step.per_s / (1 + account.load) * max(0.0, min(end, until) - step.at)
        for step, until in zip(account.steps, edges[1:], strict=True)
    ) * (1 - account.errors)
    if account.dynamic:
        allowed = account.dynamic.allowed
    second = account.steps[1].at if len(account.steps) > 1 else None
    return Outcome(
        images=images,
        requests=len(account.sent_at),
        refused=len(account.refused_at),
        failed=failed,
        failed_by_429=failed_by_429,
        wall_s=end,
        delivered=len(account.served_at) / allowed,
        settled_s=_reached(account, 0.0, min(second or end, end)),
        followed_s=_reached(account, second, end) if second and second < end else None,
        concurrency=pacer.concurrency,
    )


def _within(moments: Sequence[float], after: float, until: float) -> int:
    """How many of these moments, in order, lie after one and not after another."""
    return bisect_right(moments, until) - bisect_right(moments, after)


def _reached(account: Account, begin: float, end: float) -> float:
    """Seconds from ``begin`` until throughput lies within 10 % of what is allowed, over the next 10 s."""
    step = account.limit(begin)
    per_s = step.per_s / (1 + account.load) * (1 - account.errors)
    if per_s == math.inf:
        return end - begin  # a rate that moves is never reached
    span = 10.0
    at = begin
    while at + span < end:
        served = _within(account.served_at, at, at + span)
        refused = _within(account.refused_at, at, at + span)
        if served >= 0.9 * per_s * span - 2 and refused <= max(0.05 * served, 3):
            return at - begin
        at += 0.5
    return end - begin
