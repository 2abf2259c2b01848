"""What store and log hold before a job's next request leaves: a resume has nothing else."""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from imagemill.blocks.apis import Fal, ImageApi, Runware, Together
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.recorder import Recorder
from imagemill.errors import StoreUnavailableError
from imagemill.jobs import Job, JobStatus
from tests.engine.accounts import Account, Ended, Images, Jobs, jobs_of, run_over
from tests.virtual_time import run


def test_between_two_attempts_a_job_is_pending_with_what_it_was_charged(tmp_path: Path) -> None:
    """A running job's attempt passes for a request in flight, which would be booked again after a death."""
    api = Runware(api_key="k", base_url="http://first.test", usd_per_megapixel=0.0013)
    account = Account(api, latency_s=0.5, faults={"garbage": 1.0})
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs_of(1, api.model)))
    running, failed = JobStatus.RUNNING, JobStatus.FAILED
    states = [state for state, _ in groupby((job.status, job.attempts) for job in ended.saves)]
    assert states == [(running, 1), (JobStatus.PENDING, 1), (running, 2), (failed, 2)]
    between = next(job for job in ended.saves if job.status is JobStatus.PENDING)
    assert between.request_id is None
    assert between.cost_usd == pytest.approx(ended.jobs[0].cost_usd / 2)
    assert len(account.charged) == 2


@pytest.mark.parametrize(
    ("api", "fault", "pause_s"),
    [
        (Together(api_key="k", base_url="http://first.test"), "garbage", 0.0),
        (Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003), "fail", 2.0),  # free of charge
    ],
    ids=["charged", "accepted"],
)
@pytest.mark.parametrize("bucket", ["there", "away", "not used"])
def test_a_second_request_leaves_once_the_log_of_the_first_survives_the_machine(
    tmp_path: Path, bucket: str, api: ImageApi, fault: str, pause_s: float
) -> None:
    """A resume elsewhere counts one request that nobody knows, not two (seed 1221 of the simulator).

    It asks about the first one that was accepted, and must know that another followed.
    """
    uploads: list[float] = []

    async def upload(recorder: Recorder, _: Engine) -> None:
        for event in recorder.uploading():
            event.set()
        while True:
            await recorder.urgent()
            unsafe = recorder.uploading()
            await anyio.sleep(1.5)
            if bucket == "there":
                uploads.append(anyio.current_time())
                for event in unsafe:
                    event.set()

    account = Account(api, latency_s=0.0, faults={fault: 1.0})
    given: dict[str, Any] = {} if bucket == "not used" else {"uploaded": upload}
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs_of(1, api.model), **given))
    assert (ended.jobs[0].attempts, ended.jobs[0].retries) == (2, 1)
    first, second = account.posted_at
    least_s = pause_s + {"there": 1.5, "away": 5.0, "not used": 0.0}[bucket]
    assert least_s <= second - first < least_s + 1.0
    assert all(upload < second for upload in uploads)


def test_what_is_sent_while_lost_requests_are_looked_for_is_named_before(tmp_path: Path) -> None:
    """Or a machine that is lost then may have sent it, and nobody knows."""
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    jobs = jobs_of(70, api.model)
    for job in jobs[:60]:
        job.unanswered, job.started_at = 1, 0.0
    named: list[int] = []

    async def upload(_: Recorder, engine: Engine) -> None:
        await anyio.sleep(0.5)
        named.extend(engine.up_next())

    account = Account(api, latency_s=3.0)
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs, concurrency=2, uploaded=upload))
    assert ended.statuses["done"] == 70
    first = list(dict.fromkeys(job.number for job in ended.saves if job.status is JobStatus.RUNNING))
    assert first[:4] == [60, 61, 62, 63]
    assert set(named) >= {*range(60), *range(62, 70)}


def test_a_picture_that_nothing_could_keep_is_booked_once_though_a_resume_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API still has it: asked again it charges nothing (seed 6887 of the simulator)."""
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    account = Account(api, latency_s=0.5)
    (tmp_path / "unsaved").touch()  # no folder: the disk takes nothing either

    async def away(*_: object) -> None:
        raise StoreUnavailableError("the bucket cannot be reached")

    async def twice() -> tuple[Ended, Ended]:
        with monkeypatch.context() as bucket:
            bucket.setattr(Images, "put_image", away)
            stopped = await run_over(tmp_path, {"first": account}, jobs_of(1, api.model))
        return stopped, await run_over(tmp_path, {"first": account}, stopped.jobs)

    stopped, resumed = run(twice)
    left, done = stopped.jobs[0], resumed.jobs[0]
    assert (left.status, left.cost_usd) == (JobStatus.PENDING, 0.003)
    assert (done.status, done.cost_usd, done.unanswered) == (JobStatus.DONE, 0.003, 0)
    assert resumed.cost.spent_usd == 0.0
    assert (account.posted, len(account.charged)) == (1, 1)
    assert (done.latency_s, done.queued_s) == (None, None)  # known to who sent it


def test_a_latency_begins_with_the_request_and_not_with_the_last_question_about_it(tmp_path: Path) -> None:
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003, request_timeout_s=5.0)
    account = Account(api, latency_s=8.0, latency_sigma=0.0)
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs_of(1, api.model)))
    done = ended.jobs[0]
    assert (done.status, done.attempts, account.posted) == (JobStatus.DONE, 2, 1)
    assert done.latency_s == pytest.approx(8.0, abs=1.0)


def test_a_picture_is_fetched_and_uploaded_while_the_store_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is in the log: an interrupt on a full disk left what was paid for (seed 30309)."""
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    account = Account(api, latency_s=0.5)
    write, put_image, uploaded = Jobs._write, Images.put_image, []

    async def full(store: Jobs, *arguments: Any, **more: Any) -> None:
        if anyio.current_time() - begun < 30.0:
            raise OSError(errno.ENOSPC, "No space left on device")
        await write(store, *arguments, **more)

    async def put(images: Images, *arguments: Any) -> None:
        uploaded.append(anyio.current_time() - begun)
        await put_image(images, *arguments)

    async def once() -> Ended:
        nonlocal begun
        begun = anyio.current_time()
        return await run_over(tmp_path, {"first": account}, jobs_of(1, api.model))

    begun = 0.0
    monkeypatch.setattr(Jobs, "_write", full)
    monkeypatch.setattr(Images, "put_image", put)
    ended = run(once)
    assert uploaded[0] < 5.0
    assert ended.seconds > 30.0
    assert (ended.statuses["done"], account.posted, len(account.charged)) == (1, 1, 1)


def test_a_store_that_takes_nothing_is_why_a_run_stops_though_its_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its counts and costs are old, and a resume makes them right (seed 475519)."""

    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Jobs, "_write", full)
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    account, jobs = Account(api, latency_s=0.5), jobs_of(3, api.model)
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs, limit_usd=0.004))
    assert (account.posted, len(account.charged)) == (1, 1)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    assert "No space left on device" in ended.stopped.reason


class Losing(Account):
    """An account that takes and charges what is posted, and whose answers are lost; its list is away."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "by-endpoint" in request.url.path:
            return httpx.Response(503, request=request)
        answer = await super().handle_async_request(request)
        if request.method == "POST" and anyio.current_time() < 200.0:
            raise httpx.ReadError("the connection was reset", request=request)
        return answer


def test_lost_requests_are_not_sent_again_as_probes_of_an_api_whose_list_is_away(tmp_path: Path) -> None:
    """A resume looks for them; to send one only to see whether the API works may pay for it twice."""
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    account, jobs = Losing(api, latency_s=0.5), jobs_of(6, api.model)
    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs, concurrency=6))
    assert (account.posted, len(account.charged)) == (6, 6)
    assert [(job.status, job.unanswered) for job in ended.jobs] == [(JobStatus.PENDING, 1)] * 6
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE


class Cancelling(Account):
    """An account whose owner cancels the first request at the vendor, where it was being made."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.method == "POST" and self.posted == 1:
            link = orjson.loads(await answer.aread())["cancel_url"]
            await anyio.sleep(0.2)
            await super().handle_async_request(httpx.Request("PUT", link, headers=request.headers))
        return answer


def test_a_request_that_was_cancelled_at_the_vendor_may_be_billed(tmp_path: Path) -> None:
    api = Fal(api_key="k", base_url="http://first.test", usd_per_image=0.003)
    account = Cancelling(api, faults={"timeout_after_charge": 1.0}, latency_s=0.1)

    async def cured() -> None:
        await anyio.sleep(0.5)
        account.studio.configure(replace(account.studio.settings, faults={}))

    ended = run(lambda: run_over(tmp_path, {"first": account}, jobs_of(1, api.model), meanwhile=cured))
    (job,) = ended.jobs
    assert (job.status, job.cost_usd) == (JobStatus.DONE, 0.003)
    assert len(account.charged) == 1 + job.unanswered == 2


def named_at_runware(named: int, *, unnamed: int = 0, route: str = "") -> tuple[Runware, list[Job], float]:
    """An API, jobs whose requests an earlier process named there, and their price in USD."""
    api = Runware(api_key="k", base_url="http://first.test", usd_per_megapixel=0.0013)
    api.begin("run")
    jobs = jobs_of(named + unnamed, api.model)
    for job in jobs[:named]:
        job.attempts, job.route = 1, route
        job.request_id = api.name_of(job)
    return api, jobs, api.price_usd(jobs[0].width, jobs[0].height, jobs[0].steps)


@pytest.mark.parametrize("limited", ["the run", "the route"])
def test_what_an_earlier_process_may_have_sent_exceeds_no_limit_and_what_it_sent_is_fetched(
    tmp_path: Path, limited: str
) -> None:
    """Five were named, one of them was sent, and the limit has room for three (seeds 837283 and 10078622).

    Runware knew nothing yet of the one that it was at work on: its charge was in no sum, or was one too many.
    """
    api, jobs, price_usd = named_at_runware(5, unnamed=1, route="first")
    accounts = {"first": Account(api, latency_s=30.0, latency_sigma=0.0)}

    async def was_sent() -> None:
        async with httpx.AsyncClient(transport=accounts["first"], timeout=60.0) as http:
            await http.post(api.endpoint(jobs[3]), headers=api.headers, json=api.payload(jobs[3]))

    limits: dict[str, Any] = {"limit_usd": 3.1 * price_usd}
    if limited == "the route":
        limits = {"shares": {"first": 3.1 * price_usd}}
        accounts["second"] = Account(Together(api_key="k", base_url="http://second.test"))
        accounts["second"].refuses = 401
    ended = run(lambda: run_over(tmp_path, accounts, jobs, meanwhile=was_sent, **limits))
    assert ended.stopped is not None
    assert len({prompt for _, prompt in accounts["first"].charged}) == len(accounts["first"].charged) == 3
    assert ended.cost.committed_usd == pytest.approx(ended.cost.spent_usd)
    assert ended.cost.spent_usd == pytest.approx(3 * price_usd)
    assert (ended.statuses["done"], ended.jobs[3].status) == (3, JobStatus.DONE)


def test_where_an_api_does_not_say_whether_it_has_a_request_no_limit_is_exceeded_by_it(
    tmp_path: Path,
) -> None:
    """The questions got lost, and it was sent again as if it had been taken before (seed 10145588)."""
    api, jobs, price_usd = named_at_runware(2)
    account = Account(api)
    names = [job.request_id for job in jobs]
    account.refuses = 503
    ended = run(lambda: run_over(tmp_path, {"only": account}, jobs, limit_usd=1.5 * price_usd))
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    assert [(job.status, job.request_id) for job in ended.jobs] == [(JobStatus.PENDING, n) for n in names]
    assert 240.0 <= ended.seconds < 260.0


class RefusingTwice(Account):
    """An account that refuses all in its first minute, and one request after it was asked for two minutes."""

    asked_late = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked_late += anyio.current_time() > 120.0
        early = self.posted >= 5 and anyio.current_time() < 60.0
        self.refuses = 429 if early or self.asked_late == 3 else None
        return await super().handle_async_request(request)


def test_an_api_that_answers_questions_between_two_refusals_has_not_refused_everything(
    tmp_path: Path,
) -> None:
    """Seeds 975592 and 989006: two requests minutes apart were refused, and each resume stopped the run."""
    api, jobs, price_usd = named_at_runware(3)
    account = RefusingTwice(api)

    async def once() -> Ended:
        account.open()
        async with httpx.AsyncClient(transport=account, timeout=60.0) as http:
            await http.post(api.endpoint(jobs[0]), headers=api.headers, json=api.payload(jobs[0]))
        return await run_over(tmp_path, {"only": account}, jobs, limit_usd=2.1 * price_usd, patience_s=60.0)

    ended = run(once)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.OUT_OF_BUDGET
    assert ended.cost.committed_usd == pytest.approx(2 * price_usd)
    assert [job.status for job in ended.jobs].count(JobStatus.PENDING) == 1


class Slow(Account):
    """An account that takes three and a half seconds for each answer."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(3.5)
        return await super().handle_async_request(request)


def test_an_api_that_answers_slowly_about_many_requests_answers(tmp_path: Path) -> None:
    """Four hundred may have been sent, none was: each resume stopped at the first without an answer."""
    api, jobs, price_usd = named_at_runware(400)
    ended = run(lambda: run_over(tmp_path, {"only": Slow(api)}, jobs, limit_usd=20.5 * price_usd))
    assert ended.stopped is not None
    assert (ended.stopped.kind, ended.statuses["done"]) == (StopKind.OUT_OF_BUDGET, 20)


class Mute(Account):
    """An account that answers nothing about one request."""

    muted = ""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.muted.encode() in await request.aread():
            return httpx.Response(500, json={"errors": []}, request=request)
        return await super().handle_async_request(request)


class Failing(Account):
    """An account that says of each task that it is asked about that it has failed."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if b"getTaskDetails" in await request.aread():
            await anyio.sleep(5.0)
            return httpx.Response(200, json={"data": [{"response": {"errors": [{"code": "gone"}]}}]})
        return await super().handle_async_request(request)


def test_an_api_by_which_every_request_has_failed_is_not_asked_for_ever(tmp_path: Path) -> None:
    api, jobs, price_usd = named_at_runware(2)
    ended = run(lambda: run_over(tmp_path, {"only": Failing(api)}, jobs, limit_usd=1.5 * price_usd))
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    assert 240.0 <= ended.seconds < 270.0


def test_an_unanswered_question_matters_only_while_its_request_exceeds_the_limit(tmp_path: Path) -> None:
    api, jobs, price_usd = named_at_runware(2)
    account = Mute(api)
    account.muted = str(jobs[1].request_id)
    ended = run(lambda: run_over(tmp_path, {"only": account}, jobs, limit_usd=1.5 * price_usd))
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.OUT_OF_BUDGET
    assert [job.status for job in ended.jobs] == [JobStatus.PENDING, JobStatus.FAILED]


def test_where_a_route_does_not_say_what_it_has_the_limit_is_not_said_to_be_reached(tmp_path: Path) -> None:
    api, jobs, price_usd = named_at_runware(2, unnamed=1, route="first")
    accounts = {
        "first": Account(api),
        "second": Account(Together(api_key="k", base_url="http://second.test")),
    }
    accounts["first"].refuses = 503
    ended = run(lambda: run_over(tmp_path, accounts, jobs, limit_usd=1.5 * price_usd))
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    assert "http://first.test" in ended.stopped.reason


def test_a_failed_requests_money_that_another_has_is_not_spent_twice(tmp_path: Path) -> None:
    """The lines that said that it had failed, and that another was sent in place of it, were lost."""
    api, jobs, price_usd = named_at_runware(2)
    account = Account(api)
    jobs[0].prompt = "Fox #fault:fail*1"

    async def twice() -> Ended:
        account.open()
        async with httpx.AsyncClient(transport=account, timeout=60.0) as http:
            for job in jobs:
                await http.post(api.endpoint(job), headers=api.headers, json=api.payload(job))
        return await run_over(tmp_path, {"only": account}, jobs, limit_usd=1.5 * price_usd)

    ended = run(twice)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.OUT_OF_BUDGET
    assert [job.status for job in ended.jobs] == [JobStatus.PENDING, JobStatus.DONE]
    assert len(account.charged) == 1
    assert ended.cost.committed_usd == pytest.approx(price_usd)
