"""A suspect picture whose second one does not come home: the first is kept, and what the second may cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest

from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.jobs import JobStatus
from imagemill.quality.inspection import OnSuspect
from tests.blocks.apis.variants import VARIANTS
from tests.conftest import Place
from tests.fast_clock import run_fast
from tests.losing_transport import LosingTransport
from tests.quality.one_job import engine_with, only_job


@pytest.mark.parametrize("interrupted", [False, True])
def test_it_counts_as_unanswered(
    place: Place, emulator: Callable[..., Emulator], tmp_path: Path, *, interrupted: bool
) -> None:
    api = VARIANTS["fal"](emulator(pictures="full").base_url)
    price, submitted = api.price_usd(512, 512), 0

    def answer(request: httpx.Request, _: int) -> httpx.Response | None:
        nonlocal submitted
        submitted += request.method == "POST"
        if request.method == "POST" or submitted < 2:
            return None
        return httpx.Response(202, json={"status": "IN_PROGRESS"}) if interrupted else httpx.Response(500)

    async def end() -> None:
        opened = engine_with(
            api,
            place,
            tmp_path,
            prompt="A tram #fault:blurred",
            on_suspect=OnSuspect.RETRY,
            transport=LosingTransport(answer),
        )
        async with opened as (engine, cost, store):

            async def interrupt() -> None:
                while submitted < 2:  # noqa: ASYNC110 - a counter
                    await anyio.sleep(0.5)
                await anyio.sleep(10.0)
                engine.stop(StopKind.INTERRUPTED, "Interrupted.")
                await engine.abandon_when_interrupted()

            async with anyio.create_task_group() as group:
                if interrupted:
                    group.start_soon(interrupt)
                await engine.run_shard(0, 0)
            job = await only_job(store)
        assert (job.status, job.suspect, job.cost_usd) == (JobStatus.DONE, "blurred", price)
        assert (job.unanswered, job.unanswered_usd) == (1, price)
        # A promise that stood for ever would hold up the run at its limit.
        assert (cost.promised_usd, cost.doubtful_usd) == (0.0, pytest.approx(price))

    run_fast(end)
    assert submitted == 2
