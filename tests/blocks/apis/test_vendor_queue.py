"""The engine before an API that queues, on real sockets: nothing refused, nothing timed out in the queue."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import httpx
import pytest

from imagemill.blocks.apis import Fal, ImageApi
from imagemill.blocks.apis.error_codes import QUEUE_TIMEOUT
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.emulator import Emulator
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError
from imagemill.jobs import Job, JobStatus
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import make_job


async def work(
    api: ImageApi, bucket: ImageBucket, folder: Path, jobs: list[Job], *, stop_after_s: float | None = None
) -> tuple[list[Job], Pacer]:
    pacer = Pacer(None, queues=api.queues)
    recorder = Recorder("run", JobLog("run", folder / "log.jsonl"), pacer, Telemetry("run", "fal", api.model))
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        MemoryStore(folder / "jobs.json") as store,
        anyio.create_task_group() as group,
    ):
        await store.add(jobs)
        await store.mark_planned()
        engine = Engine(
            routes=Routes([Route.of(api, http, pacer, Breaker(0.5, 300.0), recorder)]),
            bucket=bucket,
            store=store,
            cost=CostLimit(None),
            recorder=recorder,
            unsaved=folder / "unsaved",
            rng=random.Random(1),
        )
        group.start_soon(engine.abandon_when_interrupted)
        if stop_after_s is not None:

            async def interrupt(after_s: float) -> None:
                await anyio.sleep(after_s)
                engine.stop(StopKind.INTERRUPTED, "Interrupted.")

            group.start_soon(interrupt, stop_after_s)
        await engine.run_shard(0, len(jobs) - 1)
        ended = [job async for batch in store.all_jobs() for job in batch]
        group.cancel_scope.cancel()
    recorder.close()
    return ended, pacer


def fal(emulator: Emulator, **settings: float) -> Fal:
    return Fal(api_key="a key", base_url=emulator.base_url, **settings)


@pytest.mark.slow
def test_a_wait_in_the_queue_is_neither_timeout_nor_latency(
    emulator: Emulator, bucket: ImageBucket, tmp_path: Path
) -> None:
    emulator.configure(max_concurrent=2, latency_s=0.5)
    api = fal(emulator, request_timeout_s=5.0)
    jobs = [make_job(api, f"Fox {n}", number=n) for n in range(30)]
    ended, pacer = anyio.run(work, api, bucket, tmp_path, jobs)
    assert {(job.status, job.attempts) for job in ended} == {(JobStatus.DONE, 1)}
    assert pacer.concurrency == 2
    waits = sorted(job.queued_s or 0.0 for job in ended)
    assert waits[len(waits) // 2] > 0.2
    latencies = sorted(job.latency_s or 0.0 for job in ended)
    assert 0.3 < latencies[len(latencies) // 2] < 2.0
    assert (emulator.bill()["images"], emulator.stats()["rate_limited"]) == (30, 0)


def test_a_request_in_the_queue_has_a_patience_of_its_own(emulator: Emulator) -> None:
    emulator.configure(max_concurrent=1, latency_s=4.0)
    api = fal(emulator, queue_timeout_s=0.5)

    async def accepted(_: str, _charged_usd: float | None = None) -> None:
        return

    async def scenario() -> ApiError:
        async with httpx.AsyncClient(trust_env=False) as http, anyio.create_task_group() as group:
            group.start_soon(api.generate, http, make_job(api, "first"), accepted)
            await anyio.sleep(0.5)
            with pytest.raises(ApiError) as caught:
                await api.generate(http, make_job(api, "second"), accepted)
        return caught.value

    error = anyio.run(scenario)
    assert (error.code, error.keep_request) == (QUEUE_TIMEOUT, False)
    assert emulator.bill()["images"] == 1


def test_what_waits_in_the_queue_at_an_interrupt_is_not_paid(
    emulator: Emulator, bucket: ImageBucket, tmp_path: Path
) -> None:
    emulator.configure(max_concurrent=2, latency_s=1.5)
    api = fal(emulator)
    jobs = [make_job(api, f"Fox {n}", number=n) for n in range(20)]
    ended, _ = anyio.run(lambda: work(api, bucket, tmp_path, jobs, stop_after_s=2.5))
    done = [job for job in ended if job.status is JobStatus.DONE]
    assert done
    assert len(done) < 20
    assert {(job.status, job.request_id) for job in ended if job not in done} == {(JobStatus.PENDING, None)}
    assert emulator.bill()["images"] == len(done)
