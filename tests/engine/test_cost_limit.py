"""The cost limit, counting what is in flight."""

from __future__ import annotations

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
