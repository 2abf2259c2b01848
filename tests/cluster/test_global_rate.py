"""One rate for several processes: what each leases ahead, and what a real Prefect server lets them."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from imagemill.blocks.apis import Together
from imagemill.cluster.global_rate import hold_rate, lease_from, limit_name
from imagemill.engine.limits.leased_rate import BATCH_S, LEAST_BATCH, EvenRate, LeasedRate
from tests.virtual_time import run


@pytest.mark.anyio
@pytest.mark.usefixtures("prefect_server")
async def test_all_processes_get_their_first_batches_at_once() -> None:
    api, processes = Together(api_key="of eight processes"), 8
    await anyio.to_thread.run_sync(hold_rate, api, 60.0, processes)
    lease = lease_from(limit_name(api))
    with anyio.fail_after(30):  # at one request a second, they would take 70 s
        async with anyio.create_task_group() as group:
            for _ in range(2 * processes):
                group.start_soon(lease, LEAST_BATCH)


@pytest.mark.anyio
@pytest.mark.usefixtures("prefect_server")
async def test_the_first_process_of_a_cluster_that_had_none_gets_its_batch() -> None:
    """The limit had fewer slots than a batch, and the run stopped after a minute."""
    api = Together(api_key="of no process yet")
    await anyio.to_thread.run_sync(hold_rate, api, 12.0, 0)
    with anyio.fail_after(30):
        await lease_from(limit_name(api))(LEAST_BATCH)


@pytest.mark.parametrize("per_s", [0.1, 30.0])
@pytest.mark.parametrize("share", [1.0, 1 / 8])
def test_a_process_holds_two_batches_of_its_own_share_at_most(per_s: float, share: float) -> None:
    async def scenario() -> None:
        leases: list[int] = []

        async def lease(slots: int) -> None:
            leases.append(slots)

        rate = LeasedRate(per_s, lease)
        rate.share = share
        most = sent = 0
        async with anyio.create_task_group() as group:
            group.start_soon(rate.keep, lambda: None)
            while anyio.current_time() < 100:
                ready_at = rate.ready_at()
                await anyio.sleep(min(0.01, max(0.001, ready_at - anyio.current_time())))
                if rate.held and ready_at <= anyio.current_time():
                    rate.take(anyio.current_time())
                    sent += 1
                most = max(most, rate.held)
            group.cancel_scope.cancel()
        assert sent == pytest.approx(100 * per_s * share, rel=0.01, abs=1)
        assert most <= 2 * max(LEAST_BATCH, per_s * share * BATCH_S)

    run(scenario)


@pytest.mark.parametrize("busy_s", [0.1, 0.9])
def test_what_a_busy_process_sends_late_is_made_up_for_at_twice_the_pace(busy_s: float) -> None:
    rate, now, left_at = EvenRate(600.0), 0.0, list[float]()
    for n in range(100):
        now = max(now, rate.ready_at()) + (busy_s if n == 50 else 0.0)
        rate.take(now)
        left_at.append(now)
    assert min(later - earlier for earlier, later in pairwise(left_at)) == pytest.approx(0.05)
    assert now == pytest.approx(9.9)
    rate.take(now + 30.0)  # there was nothing to send
    assert rate.ready_at() == pytest.approx(now + 30.1)
