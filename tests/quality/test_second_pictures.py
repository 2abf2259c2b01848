"""A suspect picture whose second one does not come home: the first is kept, and what the second may cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.emulator import Emulator
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.jobs import Job, JobStatus
from imagemill.quality.inspection import Inspection, OnSuspect
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import VARIANTS, make_job
from tests.conftest import Place
from tests.fast_clock import run_fast
from tests.losing_transport import LosingTransport


@pytest.mark.parametrize("interrupted", [False, True])
def test_it_counts_as_unanswered(
    place: Place, emulator: Callable[..., Emulator], tmp_path: Path, *, interrupted: bool
) -> None:
    emulated = emulator(pictures="full")
    api = VARIANTS["fal"](emulated.base_url)
    bucket = ImageBucket(place.uri, endpoint_url=place.s3.endpoint_url)
    cost, submitted = CostLimit(1.0), 0

    def answer(request: httpx.Request, _: int) -> httpx.Response | None:
        nonlocal submitted
        submitted += request.method == "POST"
        if request.method == "POST" or submitted < 2:
            return None
        return httpx.Response(202, json={"status": "IN_PROGRESS"}) if interrupted else httpx.Response(500)

    async def ended() -> Job:
        pacer = Pacer(5)
        recorder = Recorder(
            "run", JobLog("run", tmp_path / "log.jsonl"), pacer, Telemetry("run", api.provider, api.model)
        )
        async with (
            httpx.AsyncClient(transport=LosingTransport(answer), timeout=60.0) as http,
            MemoryStore(tmp_path / "jobs.json") as store,
        ):
            await store.add([make_job(api, "A tram #fault:blurred")])
            await store.mark_planned()
            engine = Engine(
                api=api,
                http=http,
                bucket=bucket,
                store=store,
                pacer=pacer,
                cost=cost,
                breaker=Breaker(0.5, 300.0),
                recorder=recorder,
                unsaved=tmp_path / "unsaved",
                inspection=Inspection(share=1.0),
                on_suspect=OnSuspect.RETRY,
            )
            engine.grace_s = 0.0

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
            recorder.close()
            (job,) = [job async for batch in store.all_jobs() for job in batch]
            return job

    job = run_fast(ended)
    bucket.close()
    price = api.price_usd(512, 512)
    assert (job.status, job.suspect, job.cost_usd) == (JobStatus.DONE, "blurred", price)
    assert (job.unanswered, job.unanswered_usd) == (1, price)
    assert submitted == 2
    # A promise that stood for ever would hold up the run at its limit.
    assert (cost.promised_usd, cost.doubtful_usd) == (0.0, pytest.approx(price))
