"""Several emulated accounts before one engine, on virtual time: hours pass in seconds."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import httpx

from imagemill.blocks.apis import ImageApi
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.emulator.server import _application
from imagemill.emulator.settings import Settings
from imagemill.emulator.studio import Studio
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, Stop
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Limit, PaceOfAll, Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Policy, Routes
from imagemill.engine.setup_fault import SetupFault
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import StoreUnavailableError
from imagemill.jobs import Job, JobStatus
from imagemill.quality.inspection import Inspection
from imagemill.stores.memory import MemoryStore
from tests.simulation.vendor import DrawnOnce, WatchedBill

SIZE = 256
_FEEDERS = 4
"""Shards that are worked on at once."""


class Account(httpx.AsyncBaseTransport):
    """An emulated account, and the network to it.

    ``down`` breaks every connection, ``hangs`` answers nothing, ``refuses`` answers all that is posted with
    this status, and ``answers`` whatever is asked. ``known`` is the limit that an earlier run found.
    """

    def __init__(self, api: ImageApi, **settings: Any) -> None:
        self.api = api
        self.down = self.hangs = False
        self.refuses: int | None = None
        self.answers: Callable[[httpx.Request], httpx.Response] | None = None
        self.known: Limit | None = None
        self.charged: list[tuple[float, str]] = []
        self.posted_at: list[float] = []
        self._settings = Settings(pictures="fast", **settings)
        self._app: httpx.ASGITransport | None = None

    @property
    def posted(self) -> int:
        """How many requests were sent, not counting questions about them."""
        return len(self.posted_at)

    def open(self) -> None:
        """Begin, on the running loop's clock."""
        if self._app is None:
            self.studio = Studio(self._settings, clock=anyio.current_time)
            self.studio.gallery.close()
            self.studio.gallery = DrawnOnce()  # type: ignore[assignment]
            self.studio.bill = WatchedBill(
                lambda order: self.charged.append((anyio.current_time(), order.prompt))
            )
            self._app = httpx.ASGITransport(_application(self.studio))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        if self.down:
            raise httpx.ConnectError("the connection was refused", request=request)
        if request.method == "POST":
            self.posted_at.append(anyio.current_time())
        if self.hangs:
            await anyio.sleep_forever()
        if self.answers is not None:
            return self.answers(request)
        if request.method == "POST" and self.refuses is not None:
            return httpx.Response(self.refuses, json={"error": {"message": "No."}}, request=request)
        if request.url.path.endswith("/stream"):  # which this transport would only give at its end
            return httpx.Response(404, json={"detail": "no stream"}, request=request)
        assert self._app is not None
        return await self._app.handle_async_request(request)


class Images(ImageBucket):
    """A bucket that holds what it is given."""

    def __init__(self) -> None:
        self.held: dict[str, Mapping[str, str]] = {}

    async def put_image(self, name: str, content: bytes, metadata: Mapping[str, str]) -> None:
        del content
        await anyio.sleep(0.02)
        self.held[name] = dict(metadata)

    def try_delete(self, names: Sequence[str]) -> dict[str, str]:
        for name in names:
            del self.held[name]
        return {}


class Jobs(MemoryStore):
    """A store without a disk, which remembers all that was saved, in order; ``away_from``: a virtual time."""

    def __init__(self, path: Path, away_from: float = math.inf) -> None:
        super().__init__(path)
        self.saves: list[Job] = []
        self._away_from = away_from

    def save(self, job: Job, *, durable: bool = False) -> None:
        if anyio.current_time() > self._away_from:
            self._fail(StoreUnavailableError("The job store has not answered for 60 s."))
        self.saves.append(replace(job))
        super().save(job, durable=durable)

    async def _checkpoint(self) -> None:
        self._unwritten = False

    async def _lease(self, holder: str, instead_of: str | None) -> str:
        del instead_of
        return holder

    async def _renew_lease(self, holder: str) -> bool:
        del holder
        return True

    async def _free_lease(self, holder: str) -> None:
        del holder


@dataclass
class Ended:
    """What became of a run: its jobs, its stop, how long it took in seconds, and what it spent in USD.

    ``saves`` are the jobs at each moment at which one was saved, ``learned`` the limits that were found.
    """

    jobs: list[Job]
    stopped: Stop | None
    seconds: float
    cost: CostLimit
    images: dict[str, Mapping[str, str]]
    saves: list[Job] = field(default_factory=list)
    learned: Mapping[str, Limit] = field(default_factory=dict)

    @property
    def statuses(self) -> Counter[str]:
        """How many jobs ended how."""
        return Counter(job.status.value for job in self.jobs)

    @property
    def made_by(self) -> Counter[str]:
        """How many images each route made."""
        return Counter(job.route for job in self.jobs if job.status == "done")


def jobs_of(count: int, model: str = "flux.1-schnell", **fields: Any) -> list[Job]:
    """Jobs as several routes get them; each prompt is its number."""
    given = {"width": SIZE, "height": SIZE, "seed": 1, "steps": 4, "format": "jpeg", **fields}
    return [
        Job(number=n, id=str(n), key=f"{n:040x}", prompt=str(n), negative_prompt=None, model=model, **given)
        for n in range(count)
    ]


async def run_over(  # noqa: PLR0913 - what a test may vary
    folder: Path,
    accounts: Mapping[str, Account],
    jobs: Sequence[Job],
    *,
    policy: Policy = "fastest",
    hours: float | None = None,
    limit_usd: float | None = None,
    shares: Mapping[str, float] | None = None,
    patience_s: float = 300.0,
    concurrency: int | None = None,
    measured: float = 0,
    given_up: Collection[str] = (),
    store_away_after_s: float = math.inf,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    uploaded: Callable[[Recorder, Engine], Awaitable[None]] | None = None,
) -> Ended:
    """Work jobs off over these accounts; ``meanwhile`` is what happens to them, ``uploaded`` to the log.

    ``measured`` is the share of the CPU time that pictures are looked at in.
    """
    for account in accounts.values():
        account.open()
    pacers = {
        name: Pacer(concurrency, known=a.known, queues=a.api.queues, first_per_s=a.api.first_per_s)
        for name, a in accounts.items()
    }
    recorder = Recorder(
        "run",
        JobLog("run", folder / "log.jsonl"),
        PaceOfAll(list(pacers.values())),
        Telemetry("run", "all", "m"),
    )
    cost, bucket, begun = CostLimit(limit_usd), Images(), anyio.current_time()
    async with (
        Jobs(folder / "jobs.json", begun + store_away_after_s) as store,
        anyio.create_task_group() as group,
    ):
        await store.add(jobs)
        await store.mark_planned()
        recorder.begin(unique=len(jobs), done=0, failed=0, cost_usd=0.0)
        routes = Routes(
            [
                Route.of(
                    account.api,
                    httpx.AsyncClient(transport=account, timeout=30.0),
                    pacers[name],
                    Breaker(0.5, patience_s, in_a_row=4),
                    recorder,
                    setup=SetupFault(0.8),
                    name=name,
                    share=CostLimit(shares[name]) if shares and name in shares else None,
                )
                for name, account in accounts.items()
            ],
            policy,
            deadline=begun + 3600 * hours if hours is not None else None,
            left=lambda: recorder.unique - recorder.done - recorder.failed,
        )
        for route in routes:
            if route.name in given_up:
                route.give_up()
        engine = Engine(
            routes=routes,
            bucket=bucket,
            store=store,
            cost=cost,
            recorder=recorder,
            inspection=Inspection(share=measured),
            unsaved=folder / "unsaved",
            rng=random.Random(1),
        )
        engine.expect([job for job in jobs if job.request_id and job.status is JobStatus.PENDING])
        if meanwhile is not None:
            group.start_soon(meanwhile)
        if uploaded is not None:
            group.start_soon(uploaded, recorder, engine)
        shards = iter([(first, min(first + 99, len(jobs) - 1)) for first in range(0, len(jobs), 100)])

        async def feed() -> None:
            for shard in shards:
                await engine.run_shard(*shard)

        async with anyio.create_task_group() as feeders:
            for _ in range(_FEEDERS):
                feeders.start_soon(feed)
        await engine.run_parked()
        seconds = anyio.current_time() - begun
        group.cancel_scope.cancel()
        ended = [job async for batch in store.all_jobs() for job in batch]
    recorder.close()
    found = {name: limit for name, pacer in pacers.items() if (limit := pacer.learned())}
    return Ended(ended, engine.stopped, seconds, cost, bucket.held, store.saves, found)
