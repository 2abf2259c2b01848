"""The cost limit, counting what is in flight."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from imagemill.engine.cost_limit import BudgetSpentError, CostLimit
from tests.virtual_time import run


def test_a_promise_waits_for_what_is_in_flight_before_it_gives_up() -> None:
    async def scenario() -> None:
        cost = CostLimit(0.10, spent_usd=0.05)
        await cost.promise(0.05)

        async def settle_later() -> None:
            await anyio.sleep(3)
            cost.settle(0.05)

        async with anyio.create_task_group() as group:
            group.start_soon(settle_later)
            await cost.promise(0.05)
        assert anyio.current_time() == 3
        cost.settle(0.05, charged_usd=0.05)
        with pytest.raises(BudgetSpentError):
            await cost.promise(0.01)
        assert cost.spent_usd == pytest.approx(0.10)

    run(scenario)


def test_what_may_have_been_charged_counts_against_the_limit_but_not_as_cost() -> None:
    async def scenario() -> None:
        cost = CostLimit(0.10)
        await cost.promise(0.06)
        cost.settle(0.06, doubtful_usd=0.06)
        assert cost.spent_usd == 0
        with pytest.raises(BudgetSpentError):
            await cost.promise(0.06)
        cost.promise_asked(0.06, expected=False)  # sent before: to fetch it costs nothing

    run(scenario)


def test_the_limit_holds_where_the_api_charges_more_than_the_list_price() -> None:
    billed: list[float] = []

    async def bought(cost: CostLimit, slots: anyio.Semaphore) -> None:
        with contextlib.suppress(BudgetSpentError):
            async with slots:
                await cost.promise(0.005)
                await anyio.sleep(1)
                billed.append(0.01)
                cost.settle(0.005, charged_usd=0.01)

    async def scenario(slots: int, limit_usd: float, too_little_usd: float) -> None:
        billed.clear()
        cost, free = CostLimit(limit_usd), anyio.Semaphore(slots)
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(bought, cost, free)
        assert sum(billed) <= limit_usd + too_little_usd + 1e-9
        assert cost.committed_usd == pytest.approx(sum(billed))

    for slots, limit_usd in ((1, 0.055), (5, 0.095), (10, 0.195)):
        run(scenario, slots, limit_usd, 0.0)
    run(scenario, 10, 0.05, 10 * 0.005)  # all of them promised before the first charge was known


def test_what_a_dead_worker_spent_counts_once() -> None:
    """Several processes share a limit of ten images; one took five over, and died with three done."""
    set_aside = [5 * 0.01]

    async def fits(usd: float, spare_usd: float) -> bool:
        if sum(set_aside) + usd + spare_usd > 0.10 + 1e-9:
            return False
        set_aside.append(usd)
        return True

    async def scenario() -> None:
        cost = CostLimit(0.10, set_aside=fits)
        cost.recover(spent_usd=0.02, doubtful_usd=0.01, expected_usd=0.02)
        for _ in range(2):
            cost.promise_asked(0.01, expected=True)
        for bought in range(5):
            await cost.promise(0.01)
            cost.settle(0.01, charged_usd=0.01)
            assert sum(set_aside) == pytest.approx(0.05 + 0.01 * (bought + 1))
        for _ in range(2):
            cost.settle(0.01, charged_usd=0.01)
        assert cost.committed_usd == pytest.approx(0.10)
        with pytest.raises(BudgetSpentError):
            await cost.promise(0.01)
        await cost.give_back()
        assert sum(set_aside) == pytest.approx(0.10)  # all of it is spent

    run(scenario)


def test_what_a_resume_recovers_adds_up_and_counts_against_the_limit() -> None:
    async def scenario() -> None:
        cost = CostLimit(0.10)
        for _ in range(2):
            cost.recover(spent_usd=0.01)
            cost.recover(doubtful_usd=0.01)
            cost.recover(expected_usd=0.01)
        amounts = (cost.spent_usd, cost.doubtful_usd, cost.expected_usd, cost.committed_usd)
        assert amounts == pytest.approx((0.02, 0.02, 0.02, 0.06))
        await cost.promise(0.04)
        cost.stop()
        with pytest.raises(BudgetSpentError):
            await cost.promise(0.01)

    run(scenario)


def test_what_was_set_aside_and_is_not_spent_is_given_back_once() -> None:
    asked: list[float] = []

    async def fits(usd: float, spare_usd: float) -> bool:
        del spare_usd
        asked.append(round(usd, 6))
        return True

    async def scenario() -> None:
        cost = CostLimit(1.0, set_aside=fits)
        for _ in range(3):
            await cost.promise(0.01)
            cost.settle(0.01, charged_usd=0.01)
        cost.recover(spent_usd=0.02)  # another process set that aside
        await cost.give_back()
        await cost.give_back()
        assert asked == [0.1, -0.07]
        await cost.promise(0.01)
        assert asked == [0.1, -0.07, 0.1]  # of what was given back nothing is left to spend
        await CostLimit(None, set_aside=fits).give_back()
        assert len(asked) == 3

    run(scenario)


def test_near_the_limit_no_process_keeps_what_another_needs() -> None:
    taken: list[float] = []

    async def fits(usd: float, spare_usd: float) -> bool:
        if sum(taken) + usd + spare_usd > 1.005:
            return False
        taken.append(usd)
        return True

    async def scenario() -> None:
        ready, busy = (CostLimit(1.005, set_aside=fits) for _ in range(2))
        await ready.promise(0.01)  # its shard has one job
        ready.settle(0.01, charged_usd=0.01)
        for _ in range(99):
            await busy.promise(0.01)
            busy.settle(0.01, charged_usd=0.01)
        with pytest.raises(BudgetSpentError):
            await busy.promise(0.01)

    run(scenario)
