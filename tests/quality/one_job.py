"""An engine with one job, in a bucket of its own, without Prefect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from imagemill.blocks.apis import ImageApi
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine
from imagemill.engine.job_log import JobLog
from imagemill.engine.judging import Judging
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.telemetry import Telemetry
from imagemill.jobs import Job
from imagemill.quality.inspection import Inspection, OnSuspect
from imagemill.quality.judge import Judge
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import make_job
from tests.conftest import Place


@asynccontextmanager
async def engine_with(
    api: ImageApi,
    place: Place,
    folder: Path,
    *,
    prompt: str,
    on_suspect: OnSuspect,
    judge: Judge | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[tuple[Engine, CostLimit, MemoryStore]]:
    """The engine, the run's cost limit of 1 USD, and the store with one job of this prompt."""
    bucket = ImageBucket(place.uri, endpoint_url=place.s3.endpoint_url)
    pacer, cost = Pacer(5), CostLimit(1.0)
    telemetry = Telemetry("run", api.provider, api.model)
    recorder = Recorder("run", JobLog("run", folder / "log.jsonl"), pacer, telemetry)
    try:
        async with (
            httpx.AsyncClient(transport=transport, timeout=60.0) as http,
            MemoryStore(folder / "jobs.json") as store,
        ):
            await store.add([make_job(api, prompt)])
            await store.mark_planned()
            engine = Engine(
                routes=Routes([Route.of(api, http, pacer, Breaker(0.5, 300.0), recorder)]),
                bucket=bucket,
                store=store,
                cost=cost,
                recorder=recorder,
                unsaved=folder / "unsaved",
                inspection=Inspection(share=1.0),
                on_suspect=on_suspect,
                judging=judge and Judging(judge, 0.5, cost, recorder),
            )
            engine.grace_s = 0.0
            yield engine, cost, store
    finally:
        recorder.close()
        bucket.close()


async def only_job(store: MemoryStore) -> Job:
    """The one job of the store."""
    (job,) = [job async for batch in store.all_jobs() for job in batch]
    return job
