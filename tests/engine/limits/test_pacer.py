"""The pacer, in virtual time, against an account with a hidden limit."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import anyio
import pytest

from imagemill.engine.limits.limit_search import LimitSearch
from imagemill.engine.limits.pacer import Limit, Pacer, StoppedError
from tests.virtual_time import run


@dataclass
class Account:
    """A hidden limit on requests at once; latency lognormal with a median of half a second."""

    cap: int
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    in_flight: int = 0
    served: int = 0
    refused: int = 0
    peak: int = 0
    sent_at: list[float] = field(default_factory=list)

    async def request(self, pacer: Pacer, retry_after_s: float | None = None) -> bool:
        slot = await pacer.acquire()
        self.sent_at.append(anyio.current_time())
        try:
            if self.in_flight >= self.cap:
                await anyio.sleep(0.02)
                self.refused += 1
                slot.refused, slot.retry_after_s = True, retry_after_s
                return False
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            await anyio.sleep(self.rng.lognormvariate(-0.69, 0.35))
            self.in_flight -= 1
            self.served += 1
            slot.served = True
            return True
        finally:
            pacer.release(slot)


async def work(account: Account, pacer: Pacer, images: int, workers: int = 200) -> float:
    """Make so many images; the seconds it took."""
    left = images

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            while not await account.request(pacer):
                pass

    begun = anyio.current_time()
    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(worker)
    return anyio.current_time() - begun


@pytest.mark.parametrize("cap", [3, 20, 27, 50])
def test_auto_finds_a_hidden_limit_with_few_429s(cap: int) -> None:
    account, found = Account(cap), []

    async def scenario() -> float:
        pacer = Pacer(None)
        seconds = await work(account, pacer, 4000)
        found.append(pacer.concurrency)
        return seconds

    seconds = run(scenario)
    mean_latency = 0.5016 * 2.718281828 ** (0.35**2 / 2)
    reached = 4000 / seconds / (cap / mean_latency)
    assert reached > 0.85
    assert account.refused < 0.02 * 4000
    assert abs(found[0] - cap) <= 1  # at most one above, while it looks for more


def test_fixed_concurrency_is_never_exceeded_and_always_used() -> None:
    account = Account(cap=1000)

    async def scenario() -> None:
        pacer = Pacer(7)
        await work(account, pacer, 200)

    run(scenario)
    assert account.peak == 7


def test_a_number_that_the_account_refuses_is_lowered() -> None:
    """Half a second after each refusal twenty left at once: seven in ten were refused."""
    account = Account(cap=10)
    seconds = run(lambda: work(account, Pacer(20), 1000))
    mean_latency = 0.5016 * 2.718281828 ** (0.35**2 / 2)
    assert 1000 / seconds / (10 / mean_latency) > 0.9
    assert account.refused < 0.03 * 1000
    assert account.peak <= 20


def test_images_a_minute_are_held() -> None:
    account = Account(cap=1000)

    async def scenario() -> None:
        await work(account, Pacer(50, per_minute=120), 240)

    run(scenario)
    for start in (0.0, 30.0, 60.0):
        assert sum(start <= at < start + 60 for at in account.sent_at) <= 121
    assert account.sent_at[-1] < 121


def test_a_retry_after_holds_everybody_back() -> None:
    account = Account(cap=0)

    async def scenario() -> None:
        pacer = Pacer(20)
        await account.request(pacer, retry_after_s=30)
        account.cap = 100
        await work(account, pacer, 20)

    run(scenario)
    assert sum(at < 30 for at in account.sent_at) == 1
    assert len(account.sent_at) == 21


def test_a_stop_lets_nobody_through_who_waits() -> None:
    async def scenario() -> None:
        pacer = Pacer(1)
        held = await pacer.acquire()

        async def wait() -> None:
            with pytest.raises(StoppedError):
                await pacer.acquire()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            pacer.stop()
        pacer.release(held)
        assert pacer.in_flight == 0

    run(scenario)


def test_a_waiter_that_gives_up_does_not_take_the_first_ones_wake_up_with_it() -> None:
    async def scenario() -> None:
        pacer = Pacer(1)
        slot = await pacer.acquire()
        through: list[float] = []

        async def wait() -> None:
            await pacer.acquire()
            through.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(1)
            with anyio.move_on_after(1):
                await pacer.acquire()  # second in the queue
            pacer.release(slot)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        assert through == [2]

    run(scenario)


def test_requests_that_left_in_the_same_instant_after_a_pause_are_no_burst() -> None:
    """Such as those that waited for the end of an outage, by a clock that ticks in milliseconds."""

    async def inside() -> None:
        pacer = Pacer(100)
        for _ in range(3):
            slots = [await pacer.acquire() for _ in range(100)]
            await anyio.sleep(10.0)
            slots[80].refused = anyio.current_time() == 30.0
            for slot in [slots[80], *slots[:80], *slots[81:]]:
                pacer.release(slot)
        assert pacer.in_flight == 0

    run(inside)


def test_a_look_for_a_higher_limit_holds_back_no_other_request() -> None:
    """Those that took the places of finished ones were spaced as well, and places stood empty."""
    search, now = LimitSearch(Limit(8)), 0.0
    in_flight = [search.sent(n, now, paced=False) for n in range(1, 9)]
    while not search.window.looks:
        now += 0.125
        search.admitted(in_flight.pop(0), now)
        in_flight.append(search.sent(8, now, paced=False))
    assert search.concurrency == 9
    assert search.ready_at(8) == -math.inf
    assert now + 0.09 < search.ready_at(9) < now + 0.125
