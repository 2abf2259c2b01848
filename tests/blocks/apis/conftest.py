"""An emulated vendor a module, and an engine on real sockets whose clock runs fast."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from imagemill.blocks.apis import ImageApi
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.emulator import Emulator, Settings
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.telemetry import Telemetry
from imagemill.jobs import Job
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import Outcome
from tests.fast_clock import run_fast

USUAL = Settings(latency_s=0, pictures="fast")


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with Emulator(USUAL) as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator) -> Emulator:
    """The module's emulator with usual settings and a clear bill."""
    running.configure(**USUAL.as_dict())
    running.reset()
    return running


@pytest.fixture(scope="session")
def opened_bucket() -> Iterator[tuple[ImageBucket, Any]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        session = boto3.Session("test", "test", region_name="us-east-1")
        client = session.client("s3", endpoint_url=url)
        bucket = ImageBucket("s3://images/run", endpoint_url=url, session=session)
        yield bucket, client
        bucket.close()
        client.close()
    finally:
        server.stop()


@pytest.fixture
def bucket(opened_bucket: tuple[ImageBucket, Any]) -> ImageBucket:
    """One bucket for all tests; made again where another test has reset moto, of which a process has one."""
    bucket, client = opened_bucket
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket="images")
    return bucket


@pytest.fixture
def work_all(bucket: ImageBucket, tmp_path: Path) -> Callable[..., list[Outcome]]:
    """Work off jobs with the real engine, store, bucket and HTTP client; only the clock is fast.

    ``work_all(api, jobs, limit_usd, spent_usd, transport=, fast=, always_fast=, interrupt_after_s=, fence=)``
    takes the cost limit, what of it was spent before, a network that loses answers, whether the clock is fast
    (also while this process is busy), when to interrupt, and which jobs are still this process's.
    """

    async def interrupt(engine: Engine, after_s: float) -> None:
        await anyio.sleep(after_s)
        engine.stop(StopKind.INTERRUPTED, "interrupted")

    async def inside(
        api: ImageApi,
        jobs: list[Job],
        cost: CostLimit,
        transport: httpx.AsyncBaseTransport | None,
        interrupt_after_s: float | None,
        fence: Callable[[Job], Awaitable[bool]] | None,
    ) -> list[Outcome]:
        pacer = Pacer(10)
        telemetry = Telemetry("run", api.provider, api.model)
        recorder = Recorder("run", JobLog("run", tmp_path / "log.jsonl"), pacer, telemetry)
        try:
            async with (
                httpx.AsyncClient(timeout=None, trust_env=False, transport=transport) as http,
                MemoryStore(tmp_path / "jobs.json") as store,
            ):
                await store.add(jobs)
                await store.mark_planned()
                engine = Engine(
                    routes=Routes([Route.of(api, http, pacer, Breaker(0.5, 300.0), recorder)]),
                    bucket=bucket,
                    store=store,
                    cost=cost,
                    recorder=recorder,
                    unsaved=tmp_path / "unsaved",
                    rng=random.Random(1),
                )
                engine.fence = fence
                engine.expect([job for job in jobs if job.request_id])
                async with anyio.create_task_group() as group:
                    group.start_soon(engine.abandon_when_interrupted)
                    if interrupt_after_s is not None:
                        group.start_soon(interrupt, engine, interrupt_after_s)
                    await engine.run_shard(0, len(jobs) - 1)
                    group.cancel_scope.cancel()
                ended = [job async for batch in store.all_jobs() for job in batch]
        finally:
            recorder.close()
        return [Outcome(job, engine.stopped, pacer.rate_limited) for job in ended]

    def work(
        api: ImageApi,
        jobs: list[Job],
        limit_usd: float | None = None,
        spent_usd: float = 0.0,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        fast: bool = True,
        always_fast: bool = False,
        interrupt_after_s: float | None = None,
        fence: Callable[[Job], Awaitable[bool]] | None = None,
    ) -> list[Outcome]:
        run = partial(run_fast, always=always_fast) if fast else anyio.run
        return run(inside, api, jobs, CostLimit(limit_usd, spent_usd), transport, interrupt_after_s, fence)

    return work


@pytest.fixture
def work(
    work_all: Callable[[ImageApi, list[Job]], list[Outcome]],
) -> Callable[[ImageApi, Job], Outcome]:
    """Work off one job."""
    return lambda api, job: work_all(api, [job])[0]
