"""Measures an account's limit within a budget: a few fixed concurrencies, then a search."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import anyio
import httpx
from pydantic import BaseModel, ConfigDict, Field

from imagemill.blocks.apis import ImageApi
from imagemill.blocks.apis.connections import http_client
from imagemill.catalog.keys import prompt_seed
from imagemill.engine.limits.pacer import CEILING, Limit, Pacer, SlotWatch
from imagemill.errors import RETRY_RULES, ApiError, ErrorClass, InputError, Outcome
from imagemill.formatting import money
from imagemill.jobs import Job
from imagemill.settings import Budget

LEVELS = (5, 10, 20, 40)
"""The concurrencies to try before the search."""

_REFUSALS_ENOUGH = 5
"""After this many 429s, a level is known to be above the limit."""

_THINGS = (
    "teapot",
    "lighthouse",
    "bicycle",
    "harbour",
    "orchard",
    "violin",
    "glacier",
    "market",
    "fox",
    "kite",
)
_MANNERS = (
    "in watercolour",
    "at dawn",
    "in fog",
    "as a woodcut",
    "from above",
    "in neon",
    "in snow",
    "up close",
)


class Level(BaseModel):
    """The measurements at one concurrency, or with ``auto`` during the search."""

    model_config = ConfigDict(frozen=True)

    concurrency: int
    auto: bool = False
    images: int
    seconds: float
    per_minute: float = Field(description="Images per minute.")
    refused_share: float = Field(description="429s over requests, from 0 to 1.")
    p50_latency_s: float | None


class Calibration(BaseModel):
    """An account's limit, and its measurements. ``limit_seen``: whether there was a 429."""

    model_config = ConfigDict(frozen=True)

    provider: str
    host: str
    concurrency: int
    per_minute: float | None
    took_per_s: float | None = Field(
        default=None, description="Requests per second that it took, if no limit on their rate was seen."
    )
    limit_seen: bool
    images: int = Field(description="Images that were paid for, or may have been.")
    cost_usd: float
    seconds: float
    levels: list[Level]

    def __str__(self) -> str:
        """What was found, and what it cost, in one sentence."""
        rate = f" and {self.per_minute:,.0f} images per minute" if self.per_minute else ""
        cost = f"{self.images:,} images cost {money(self.cost_usd)}"
        if self.limit_seen:
            found = f"{self.provider} at {self.host} allows {self.concurrency} concurrent requests{rate}"
            return f"{found}, from which runs with auto now start; {cost}."
        most = max((level.concurrency for level in self.levels), default=0)
        return (
            f"{self.provider} at {self.host}: no limit was met with up to {most} concurrent requests, so"
            f" nothing was kept; {cost}, and a larger budget may find the limit."
        )


@dataclass
class _Allowance:
    """Images left to pay for; one is taken before a request and given back where it made none."""

    left: int
    until: float
    spent: int = 0

    def take(self) -> bool:
        if self.left < 1 or anyio.current_time() >= self.until:
            return False
        self.left -= 1
        self.spent += 1
        return True

    def give_back(self) -> None:
        self.left += 1
        self.spent -= 1


@dataclass
class _Tally:
    requests: int = 0
    refused: int = 0
    verdict: str | None = None
    latencies: list[float] = field(default_factory=list)


async def calibrate(api: ImageApi, http: httpx.AsyncClient, budget: Budget) -> Calibration:
    """Measure an account. Half of the images are for fixed concurrencies, the rest for the search.

    Raises:
        InputError: the account cannot be measured: key refused, no credit, or every request failed.
    """
    if refusal := api.refusal(budget.width, budget.height, api.profile.steps.default):
        raise InputError(f"The API would refuse the calibration's images: {refusal}.")
    began = anyio.current_time()
    allowance = _Allowance(budget.images, began + budget.seconds)
    share = budget.images // (2 * len(LEVELS))
    levels: list[Level] = []
    best, served_per_s = 0, api.first_per_s
    for level in () if api.queues else LEVELS:  # a queue takes them all, and the next level waits for it
        if share < level:
            continue  # too few images for this concurrency
        until = min(allowance.until, anyio.current_time() + budget.seconds / (2 * len(LEVELS)))
        found = await _measure(api, http, budget, Pacer(level), allowance, images=share, until=until)
        levels.append(found)
        if found.refused_share > 0:
            break
        best, served_per_s = level, max(served_per_s, found.per_minute / 60)
    pacer = Pacer(None, first_per_s=served_per_s, queues=api.queues)
    if allowance.left:
        levels.append(
            await _measure(
                api, http, budget, pacer, allowance, images=allowance.left, until=allowance.until, auto=True
            )
        )
    if not any(level.images for level in levels):
        raise InputError("No image was generated within the budget, so nothing could be measured.")
    learned = pacer.learned()
    refused = any(level.refused_share for level in levels)
    limit = learned or Limit(best if refused else max(best, pacer.concurrency))
    return Calibration(
        provider=api.provider,
        host=httpx.URL(api.base_url).netloc.decode(),
        concurrency=limit.concurrency,
        per_minute=limit.per_minute,
        took_per_s=limit.took_per_s,
        limit_seen=learned is not None or refused,
        images=allowance.spent,
        cost_usd=round(
            allowance.spent * api.price_usd(budget.width, budget.height, api.profile.steps.default), 12
        ),
        seconds=round(anyio.current_time() - began, 1),
        levels=levels,
    )


async def measure_account(api: ImageApi, budget: Budget) -> Calibration:
    """:func:`calibrate` with its own HTTP client."""
    async with http_client(api.request_timeout_s, CEILING) as http:
        return await calibrate(api, http, budget)


async def _measure(
    api: ImageApi,
    http: httpx.AsyncClient,
    budget: Budget,
    pacer: Pacer,
    allowance: _Allowance,
    *,
    images: int,
    until: float,
    auto: bool = False,
) -> Level:
    tally = _Tally()
    began, told = anyio.current_time(), pacer.concurrency
    share = _Allowance(images, until)
    numbers = itertools.count()
    marker = f"{time.time_ns():x}"

    async def worker() -> None:
        while tally.verdict is None and (auto or tally.refused < _REFUSALS_ENOUGH):
            if not share.take() or not allowance.take():
                return
            if not await _image(api, http, _job(api, budget, marker, next(numbers)), pacer, tally):
                share.give_back()
                allowance.give_back()

    async with anyio.create_task_group() as group:
        for _ in range(min(images, CEILING if auto else told)):
            group.start_soon(worker)
    if tally.verdict is not None:
        raise InputError(tally.verdict)
    seconds = anyio.current_time() - began
    latencies = sorted(tally.latencies)
    return Level(
        concurrency=pacer.concurrency if auto else told,
        auto=auto,
        images=len(latencies),
        seconds=round(seconds, 2),
        per_minute=round(60 * len(latencies) / max(seconds, 1e-3), 1),
        refused_share=round(tally.refused / max(1, tally.requests), 4),
        p50_latency_s=round(latencies[len(latencies) // 2], 3) if latencies else None,
    )


async def _image(api: ImageApi, http: httpx.AsyncClient, job: Job, pacer: Pacer, tally: _Tally) -> bool:
    """Send one request; False if it certainly cost nothing."""

    async def accepted(request_id: str, _charged_usd: float | None = None) -> None:
        job.request_id = request_id

    slot = await pacer.acquire()
    tally.requests += 1
    sent = anyio.current_time()
    try:
        watch = SlotWatch(accepted, pacer, slot)
        await api.generate(http, job, watch)
        slot.served = True
        tally.latencies.append(anyio.current_time() - sent - watch.queued_s)
    except ApiError as error:
        slot.refused = error.error_class is ErrorClass.RATE_LIMITED
        slot.retry_after_s = error.retry_after_s
        tally.refused += slot.refused
        if RETRY_RULES[error.error_class].outcome in {Outcome.STOP, Outcome.PERMANENT}:
            tally.verdict = f"The account cannot be measured: {error.message}."
        return not slot.refused
    finally:
        pacer.release(slot)
    return True


def _job(api: ImageApi, budget: Budget, marker: str, number: int) -> Job:
    """A job for a new picture, because a cached answer would measure nothing."""
    thing = _THINGS[number % len(_THINGS)]
    manner = _MANNERS[number // len(_THINGS) % len(_MANNERS)]
    prompt = f"a {thing} {manner}, {marker}-{number}"
    return Job(
        number=number,
        id=str(number),
        key=f"{marker}-{number}",
        prompt=prompt,
        negative_prompt=None,
        width=budget.width,
        height=budget.height,
        seed=prompt_seed(prompt),
        steps=api.profile.steps.default,
        model=api.model,
        format="jpeg" if "jpeg" in api.formats else "png",
    )
