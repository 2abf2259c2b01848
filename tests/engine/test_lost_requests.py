"""How long a lost request is looked for in the vendor's list, and who reads it, on virtual time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from imagemill.blocks.apis import Fal, Runware
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.earlier_requests import EarlierRequests
from imagemill.engine.engine import Engine
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.lost_requests import FIRST_LOOK_S, LEAST_S, LostRequests
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ErrorClass
from imagemill.jobs import Job
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import make_job
from tests.engine.accounts import Images
from tests.virtual_time import run

Answer = Callable[[], httpx.Response]
OUTAGE_S = 300.0


class List(httpx.AsyncBaseTransport):
    """fal's list of ended requests: each reading takes ``takes_s``, and is noted by its time."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.takes_s = 0.1
        self.read_at: list[float] = []
        self.ended: dict[str, tuple[float, Job]] = {}
        """By id, when a request appears in the list and the job that it is of."""
        self.refusal: Answer | None = None
        self.breaker = Breaker(0.5, OUTAGE_S, in_a_row=1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.read_at.append(round(anyio.current_time() - self.begun, 1))
        await anyio.sleep(self.takes_s)
        if self.refusal is not None:
            return self.refusal()
        now = anyio.current_time()
        items = [
            {"request_id": name, "status_code": 200, "json_input": API.body(job)}
            for name, (at, job) in self.ended.items()
            if at <= now
        ]
        return httpx.Response(200, json={"items": items, "has_more": False}, request=request)


API = Fal(api_key="k", request_timeout_s=60.0)
PATIENCE_S = max(LEAST_S, 10 * API.typical_latency_s)


def lost_job(number: int = 0) -> Job:
    return make_job(API, f"Fox {number}", number=number, attempts=1, unanswered=1, started_at=time.time())


@pytest.fixture
def looking(tmp_path: Path) -> Callable[..., Any]:
    """``looking(look, listed, api)``: run ``look(lost, listed)`` with a search over this list."""

    def inside(
        look: Callable[[LostRequests, List], Awaitable[Any]], listed: List | None = None, api: Fal = API
    ) -> Any:
        listed = listed or List()

        async def search() -> Any:
            recorder = Recorder(
                "run", JobLog("run", tmp_path / "log"), Pacer(1), Telemetry("run", "fal", "m")
            )
            await anyio.sleep(1000.0)
            listed.begun = anyio.current_time()
            async with httpx.AsyncClient(transport=listed, timeout=None) as http:
                result = await look(LostRequests(api, http, listed.breaker, recorder), listed)
            recorder.close()
            return result

        return run(search)

    return inside


async def find(lost: LostRequests, job: Job) -> tuple[str | None, float]:
    """What a search brings, and after how many seconds."""
    begun = anyio.current_time()
    found = await lost.find(job, anyio.Event())
    return found, round(anyio.current_time() - begun, 1)


def test_a_request_that_ends_while_it_is_looked_for_is_found(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        job = lost_job()
        listed.ended["request-1"] = (anyio.current_time() + 5.0, job)
        assert await find(lost, job) == ("request-1", 7.3)
        assert listed.read_at == [1.0, 3.1, 7.2]  # a second, then twice as long each time

    looking(look)


def test_what_no_list_has_is_given_up_once_it_must_have_ended(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        assert lost.patience_s == PATIENCE_S
        found, after_s = await find(lost, lost_job())
        assert found is None
        assert PATIENCE_S <= after_s <= PATIENCE_S + 1
        assert listed.read_at[-1] >= PATIENCE_S  # begun no earlier than the slowest can have ended

        lost.took(3 * PATIENCE_S)
        assert lost.patience_s == 6 * PATIENCE_S
        lost.took(1.0)
        assert lost.slowest_s == pytest.approx(0.9 * 3 * PATIENCE_S)  # it may have been an exception

    looking(look)


def test_an_api_that_is_given_little_time_is_not_waited_for_longer(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, _: List) -> None:
        assert lost.patience_s == 4.0

    looking(look, api=Fal(api_key="k", request_timeout_s=4.0))


def test_ids_of_answered_requests_are_not_taken(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        job, other = lost_job(), lost_job()
        job.note_ended(["answered"])
        listed.ended["answered"] = (0.0, job)
        assert (await find(lost, job))[0] is None
        listed.ended["lost"] = (0.0, job)
        assert await lost.find_now([job]) == {0: "lost"}
        assert await lost.find_now([other]) == {0: "answered"}

    looking(look)


def test_jobs_that_wait_at_once_share_the_readings(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        found: dict[int, str | None] = {}

        async def one(job: Job) -> None:
            found[job.number], _ = await find(lost, job)

        jobs = [lost_job(number) for number in range(20)]
        listed.ended = {f"request-{job.number}": (0.0, job) for job in jobs}
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(one, job)
        assert found == {number: f"request-{number}" for number in range(20)}
        assert len(listed.read_at) == 1

    looking(look)


def test_a_reading_that_fails_proves_nothing(looking: Callable[..., Any], tmp_path: Path) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        listed.refusal = lambda: httpx.Response(502)
        job = lost_job()
        listed.ended["request-1"] = (0.0, job)

        async def recover() -> None:
            await anyio.sleep(1.5 * PATIENCE_S)
            listed.refusal = None

        async with anyio.create_task_group() as group:
            group.start_soon(recover)
            found, after_s = await find(lost, job)
        assert found == "request-1"
        assert (
            1.5 * PATIENCE_S <= after_s <= 1.5 * PATIENCE_S + 4
        )  # after the patience every second, and so on
        pauses = [later - earlier for earlier, later in pairwise(listed.read_at)]
        assert min(pauses) >= FIRST_LOOK_S

    looking(look)
    events = [orjson.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    refused = [event["reason"] for event in events if event["event"] == "requests_not_listed"]
    assert refused
    assert all("502" in reason for reason in refused)
    assert {"found": 1, "lost": 1}.items() <= next(e for e in events if e.get("found")).items()


def test_a_list_that_cannot_be_read_is_given_up_after_a_minute_or_the_apis_outage(
    looking: Callable[..., Any],
) -> None:
    """Seeds 10478 and 15727: two readings that failed, and what the list had was paid for again."""

    async def look(lost: LostRequests, listed: List) -> None:
        listed.refusal = lambda: httpx.Response(502)
        found, after_s = await find(lost, lost_job())
        assert found is None
        assert 60 <= after_s < 4 * 60

        listed.read_at.clear()
        listed.takes_s = 59.0
        assert (await find(lost, lost_job()))[0] is None
        assert len(listed.read_at) == 16  # seeds 24325, 29971: readings that hung took all of the minute

        listed.takes_s = 0.1
        listed.breaker.record(ErrorClass.SERVER_ERROR)
        found, after_s = await find(lost, lost_job())
        assert found is None
        assert after_s >= OUTAGE_S - 1
        assert lost.can_look

    looking(look)


def test_readings_for_other_jobs_do_not_show_that_the_list_cannot_be_read(
    looking: Callable[..., Any],
) -> None:
    """Seed 6002626: with them a job had sixteen behind it after half as many of its own."""

    async def look(lost: LostRequests, _: List) -> None:
        alone = await find(lost, lost_job())
        async with anyio.create_task_group() as group:
            for number in range(1, 9):
                group.start_soon(lost.find, lost_job(number), anyio.Event())
                await anyio.sleep(0.3)
            beside_others = await find(lost, lost_job())
        assert alone[0] is beside_others[0] is None
        assert beside_others[1] == pytest.approx(alone[1], abs=5.0)

    listed = List()
    listed.refusal = lambda: httpx.Response(502)
    looking(look, listed)


@pytest.mark.parametrize("status", [401, 403, 422])
def test_a_key_that_may_not_read_the_list_is_not_asked_again(
    looking: Callable[..., Any], status: int
) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        listed.refusal = lambda: httpx.Response(status, json={"detail": "no"})
        found, after_s = await find(lost, lost_job())
        assert (found, after_s) == (None, FIRST_LOOK_S + 0.1)
        assert not lost.can_look
        assert await find(lost, lost_job(1)) == (None, 0.0)
        assert len(listed.read_at) == 1

    looking(look)


def test_one_reading_alone_may_be_old_and_is_made_again(looking: Callable[..., Any]) -> None:
    """Seed 391463: the only reading that worked was a cache's, and the request was sent again."""

    async def look(lost: LostRequests, listed: List) -> None:
        job = lost_job()
        listed.ended["request-1"] = (anyio.current_time(), job)

        def in_vain() -> httpx.Response:
            if anyio.current_time() - listed.begun < PATIENCE_S:
                return httpx.Response(503)
            listed.refusal = None
            return httpx.Response(200, json={"items": [], "has_more": False})

        listed.refusal = in_vain
        found, after_s = await find(lost, job)
        assert found == "request-1"
        assert after_s < PATIENCE_S + 2 * FIRST_LOOK_S

    looking(look)


def test_a_list_of_any_shape_ends_no_run(looking: Callable[..., Any], tmp_path: Path) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        def broken() -> httpx.Response:
            raise ValueError("no such shape")

        listed.refusal = broken
        assert await lost.find_now([lost_job()]) == {}
        assert lost.can_look

    looking(look)
    events = [orjson.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert ("requests_not_listed", "ValueError") in [(e["event"], e.get("reason")) for e in events]


def test_a_stop_ends_the_search(looking: Callable[..., Any]) -> None:
    async def look(lost: LostRequests, listed: List) -> None:
        stopping = anyio.Event()
        stopping.set()
        assert await lost.find(lost_job(), stopping) is None
        assert listed.read_at == []
        stopping = anyio.Event()

        async def stop() -> None:
            await anyio.sleep(2.0)
            stopping.set()

        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            assert await lost.find(lost_job(), stopping) is None
        assert anyio.current_time() - listed.begun == 2.0

    looking(look)


def asked_by_name(folder: Path, answer: Callable[..., Awaitable[httpx.Response]], jobs: int) -> Any:
    """The jobs about whose next requests Runware answers, which it has, and after how many seconds."""
    api = Runware(api_key="k")

    async def ask() -> tuple[list[bool], float]:
        pacer = Pacer(1)
        log = JobLog("run", folder / "log")
        recorder = Recorder("run", log, pacer, Telemetry("run", api.provider, api.model))
        transport = httpx.MockTransport(answer)
        async with (
            httpx.AsyncClient(transport=transport, timeout=None) as http,
            MemoryStore(folder / "jobs.json") as store,
        ):
            engine = Engine(
                routes=Routes([Route.of(api, http, pacer, Breaker(0.5, OUTAGE_S), recorder)]),
                bucket=Images(),
                store=store,
                cost=CostLimit(None),
                recorder=recorder,
                unsaved=folder,
            )
            begun, lost = anyio.current_time(), [make_job(api, number=number) for number in range(jobs)]
            await engine.earlier.find_named(lost, {})
            recorder.close()
            return [job.request_id is not None for job in lost], anyio.current_time() - begun

    return run(ask)


def test_an_api_that_does_not_answer_is_not_asked_about_every_request_by_its_name(tmp_path: Path) -> None:
    """A thousand questions of ten seconds each held a resume up for a quarter of an hour."""

    async def silent(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    assert asked_by_name(tmp_path, silent, 1_000) == ([False] * 1_000, 60.0)


@pytest.mark.parametrize(
    ("status", "times", "found", "after_s"),
    [(429, 2, True, 2.0), (503, 1, True, 1.0), (429, 1_000, False, 10.0), (401, 1, False, 0.0)],
)
def test_a_refused_question_about_a_request_is_asked_again(
    tmp_path: Path, status: int, times: int, *, found: bool, after_s: float
) -> None:
    """It was counted as unanswered for good, though it was sent again by its name, and charged once."""
    refusals = iter(range(times))

    async def answer(request: httpx.Request) -> httpx.Response:
        if next(refusals, None) is not None:
            return httpx.Response(status, json={"errors": [{"code": "x", "message": "later"}]})
        (task,) = orjson.loads(request.content)
        return httpx.Response(200, json={"data": [{**task, "response": {}}]})

    assert asked_by_name(tmp_path, answer, 1) == ([found], after_s)


def named_by(
    tmp_path: Path, job: Job, apis: dict[str, Runware], unwritten: int, tasks: dict[str, set[str]]
) -> None:
    """Ask Runware about a job's task; ``tasks`` are those that each account has, by its name."""

    async def answer(request: httpx.Request) -> httpx.Response:
        (asked,) = orjson.loads(request.content)
        has_it = asked["taskUUID"] in tasks[request.headers["authorization"].removeprefix("Bearer ")]
        return httpx.Response(200, json={"data": [{**asked, "response": {}}] if has_it else []})

    async def ask() -> None:
        log = JobLog("run", tmp_path / "log")
        recorder = Recorder("run", log, Pacer(1), Telemetry("run", "runware", "m"))
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            routes = [
                Route.of(api, http, Pacer(1), Breaker(0.5, OUTAGE_S), recorder, name=name)
                for name, api in apis.items()
            ]
            await EarlierRequests(Routes(routes)).find_named([job], {job.number: unwritten})
        recorder.close()

    run(ask)


def test_a_task_is_asked_about_whose_name_another_accounts_had_that_ended(tmp_path: Path) -> None:
    """The first attempt was refused by a, the second failed at b; a lost machine sent the third to a."""
    apis = {name: Runware(api_key=name) for name in ("a", "b")}
    for api in apis.values():
        api.begin("run")
    job = make_job(apis["a"], attempts=2, route="b")
    apis["a"].was_refused(job, 1)
    name = apis["a"].name_of(replace(job, attempts=3)) or ""
    assert name == apis["b"].name_of(job)
    job.note_ended([name])
    named_by(tmp_path, job, apis, 0, {"a": {name}, "b": {name}})
    assert (job.request_id, job.route) == (name, "a")


def test_no_task_is_taken_up_that_has_ended(tmp_path: Path) -> None:
    """The first failed, the second made a picture, in place of which another is wanted."""
    api = Runware(api_key="a")
    api.begin("run")
    job = make_job(api, attempts=2)
    first, second = (api.name_of(replace(job, attempts=number)) or "" for number in (1, 2))
    job.note_ended([first, second])
    named_by(tmp_path, job, {"a": api}, 2, {"a": {first, second}})
    assert job.request_id == api.name_of(replace(job, attempts=3, request_id=None))
    assert job.request_id not in {first, second}
