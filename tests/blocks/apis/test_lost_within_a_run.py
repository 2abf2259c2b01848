"""Requests whose answer is lost, that the queue has not heard of yet, or that end long after: paid once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from imagemill.blocks.apis import Fal, ImageApi
from imagemill.emulator import Emulator
from imagemill.errors import ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.test_lost_requests import LISTING
from tests.blocks.apis.variants import QUEUED, VARIANTS, Outcome, make_job
from tests.losing_transport import LosingTransport

WorkAll = Callable[..., list[Outcome]]


def assert_paid_once(ended: list[Outcome], emulator: Emulator) -> None:
    assert {outcome.job.status for outcome in ended} == {JobStatus.DONE}, ended[0].job.error_message
    assert emulator.stats()["generation_requests"] == len(ended)
    assert emulator.bill()["images"] == len(ended)
    assert sum(outcome.job.cost_usd for outcome in ended) == pytest.approx(emulator.bill()["usd"])
    assert [outcome.job.unanswered for outcome in ended] == [0] * len(ended)


def submit(api: ImageApi, job: Job, emulator: Emulator) -> None:
    """Post a job, drop the answer, and wait until the API is done with it."""
    headers = {**api.headers, "prefer": ""}
    httpx.post(api.endpoint(job), json=api.body(job), headers=headers, trust_env=False)
    while emulator.stats()["in_flight"]:
        time.sleep(0.01)


def lose_submits(request: httpx.Request, before: int) -> str | None:
    return "lost" if request.method == "POST" and not before else None


@pytest.mark.slow
@pytest.mark.parametrize("latency_s", [0.0, 1.5])
@pytest.mark.parametrize("variant", LISTING)
def test_a_submit_whose_answer_is_lost_is_looked_for_before_it_is_sent_again(
    variant: str, latency_s: float, emulator: Emulator, work_all: WorkAll
) -> None:
    emulator.configure(latency_s=latency_s, latency_sigma=0)
    api = VARIANTS[variant](emulator.base_url)
    jobs = [make_job(api, f"Fox {n}", number=n) for n in range(5)]
    jobs += [make_job(api, "The same fox", number=5), make_job(api, "The same fox", number=6, seed=8)]
    jobs.append(make_job(api, "The same fox", number=7, width=1024, height=1024))
    assert_paid_once(work_all(api, jobs, transport=LosingTransport(lose_submits), fast=False), emulator)


@pytest.mark.parametrize("variant", ["fal", "replicate"])
def test_a_submit_whose_answer_times_out_is_looked_for_before_it_is_sent_again(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    taken: list[httpx.Request] = []

    def too_late(request: httpx.Request, before: int) -> None:
        if request.method == "POST" and not before:
            taken.append(request)
            httpx.post(request.url, content=request.content, headers=request.headers, trust_env=False)
            raise httpx.ReadTimeout("", request=request)

    api = VARIANTS[variant](emulator.base_url)
    assert_paid_once(
        work_all(api, [make_job(api, "Late fox")], transport=LosingTransport(too_late)), emulator
    )
    assert len(taken) == 1


@pytest.mark.parametrize("variant", LISTING)
def test_a_lost_submit_of_an_earlier_sitting_that_still_runs_is_looked_for_again(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    emulator.configure(latency_s=1.5, latency_sigma=0)
    api = VARIANTS[variant](emulator.base_url)
    price_usd = api.price_usd(512, 512)
    lost = {"attempts": 1, "unanswered": 1, "unanswered_usd": price_usd, "started_at": time.time()}
    # Prompts of its own: the list of the module's emulator still has the requests of the tests before.
    jobs = [make_job(api, f"Badger {n}", number=n, **lost) for n in range(3)]
    for job in jobs:  # as the process before sent them
        headers = {**api.headers, "prefer": ""}
        httpx.post(api.endpoint(job), json=api.body(job), headers=headers, trust_env=False)
    assert_paid_once(work_all(api, jobs, fast=False), emulator)


@pytest.mark.parametrize("unreadable", [5, 1000])
def test_a_list_that_cannot_be_read_is_no_look(
    unreadable: int, emulator: Emulator, work_all: WorkAll
) -> None:
    """A lost request is not sent again before the list was read, unless it never can be."""

    def trouble(request: httpx.Request, before: int) -> httpx.Response | str | None:
        if "by-endpoint" in request.url.path and before < unreadable:
            return httpx.Response(502)
        return lose_submits(request, before)

    api = VARIANTS["fal"](emulator.base_url)
    (outcome,) = work_all(api, [make_job(api, "Stoat")], transport=LosingTransport(trouble))
    assert outcome.job.status is JobStatus.DONE
    bought = 2 if unreadable == 1000 else 1
    assert emulator.bill()["images"] == bought
    assert outcome.job.unanswered == bought - 1


def test_what_no_list_has_is_sent_again_and_stays_in_doubt(emulator: Emulator, work_all: WorkAll) -> None:
    def never_arrived(request: httpx.Request, before: int) -> httpx.Response | None:
        if request.method == "POST" and not before:
            raise httpx.ReadError("the connection was reset", request=request)
        return None

    api = VARIANTS["fal"](emulator.base_url)
    (outcome,) = work_all(api, [make_job(api)], transport=LosingTransport(never_arrived))
    assert outcome.job.status is JobStatus.DONE
    assert (outcome.job.attempts, outcome.job.unanswered) == (2, 1)
    assert emulator.bill()["images"] == 1


def test_a_request_that_was_answered_is_not_taken_for_the_lost_one(
    emulator: Emulator, work_all: WorkAll
) -> None:
    # The first image is spoilt; the answer to the second submit is lost. Both are in the list.
    def lose_the_second(request: httpx.Request, before: int) -> str | None:
        return "lost" if request.method == "POST" and before == 1 else None

    api = VARIANTS["fal"](emulator.base_url)
    job = make_job(api, "Fox #fault:truncated*1")
    (outcome,) = work_all(api, [job], transport=LosingTransport(lose_the_second), fast=False)
    assert outcome.job.status is JobStatus.DONE, outcome.job.error_message
    assert emulator.bill()["images"] == 2
    assert outcome.job.cost_usd == pytest.approx(emulator.bill()["usd"])


def unheard_of(request: httpx.Request, before: int) -> httpx.Response | None:
    """A queue that does not know its own request the first times it is asked about it."""
    path = request.url.path
    about_one = "/requests/" in path or "/predictions/" in path or path.endswith("get_result")
    if request.method != "GET" or not about_one or before >= 2:
        return None
    return httpx.Response(404, json={"detail": "Request not found."})


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(QUEUED - {"replicate waiting"}))
def test_a_404_just_after_the_submit_is_asked_again(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    jobs = [make_job(api, f"Fox {n}", number=n) for n in range(12)]
    assert_paid_once(work_all(api, jobs, transport=LosingTransport(unheard_of), fast=False), emulator)


@pytest.mark.parametrize("variant", sorted(QUEUED - {"replicate waiting"}))
def test_a_404_after_a_lost_look_is_asked_again_also_where_the_job_began_long_before(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    def lost_then_unheard_of(request: httpx.Request, before: int) -> httpx.Response | None:
        if (missing := unheard_of(request, before)) is not None and before == 0:
            raise httpx.ReadError("the connection was reset", request=request)
        return missing

    api = VARIANTS[variant](emulator.base_url)
    job = make_job(api, "Old fox", attempts=1, started_at=time.time() - 3600)
    assert_paid_once(work_all(api, [job], transport=LosingTransport(lost_then_unheard_of)), emulator)


@pytest.mark.parametrize("variant", LISTING)
def test_a_request_that_the_list_has_is_not_gone_though_it_is_unknown_for_a_moment(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    """Seed 269716: its job had begun long before, so that the first 404 was believed."""
    api = VARIANTS[variant](emulator.base_url)
    lost = {"attempts": 1, "unanswered": 1, "unanswered_usd": api.price_usd(512, 512)}
    job = make_job(api, f"Lost {variant}", started_at=time.time() - 3600, **lost)
    submit(api, job, emulator)
    assert_paid_once(work_all(api, [job], transport=LosingTransport(unheard_of)), emulator)


@pytest.mark.parametrize("variant", LISTING)
def test_where_a_listed_request_failed_the_lost_one_may_be_listed_yet(
    variant: str, emulator: Emulator, work_all: WorkAll, tmp_path: Path
) -> None:
    """Seed 411163: another run's failed request was taken for the lost one, which was then sent again."""
    api = VARIANTS[variant](emulator.base_url)
    lost = {"attempts": 1, "unanswered": 1, "unanswered_usd": api.price_usd(512, 512)}
    job = make_job(api, f"Listed {variant}", started_at=time.time(), **lost)
    emulator.configure(faults={"fail": 1.0})
    submit(api, job, emulator)
    emulator.configure(faults={})
    old: list[httpx.Response] = []

    def old_list(request: httpx.Request, before: int) -> httpx.Response | None:  # noqa: ARG001
        if request.method != "GET" or old:
            return None
        old.append(httpx.get(request.url, headers=request.headers, trust_env=False))
        submit(api, job, emulator)
        return httpx.Response(200, content=old[0].content)

    (ended,) = work_all(api, [job], transport=LosingTransport(old_list))
    assert ended.job.status is JobStatus.DONE, ended.job.error_message
    assert emulator.bill()["images"] == 1
    assert ended.job.cost_usd == pytest.approx(emulator.bill()["usd"])
    (log,) = tmp_path.rglob("log.jsonl")
    lines = map(orjson.loads, log.read_bytes().splitlines())  # a resume would look as well
    assert [line["unanswered"] for line in lines if line["event"] == "attempt_failed"] == [1]
    assert ended.job.unanswered == 0


@pytest.mark.parametrize("variant", ["bfl", "fal", "replicate"])
def test_a_request_whose_image_is_late_and_that_is_then_unknown_for_a_moment_is_not_gone(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    """Seed 51023: the image's link and the look after it, for a fresh one, both answered 404."""
    late: list[str] = []

    def missing(request: httpx.Request, before: int) -> httpx.Response | None:  # noqa: ARG001
        is_look = unheard_of(request, 0) is not None
        kind = "look" if is_look else "link"
        if request.method != "GET" or kind in late or (is_look and not late):
            return None
        if not is_look and "/files/" not in request.url.path:
            return None
        late.append(kind)
        return httpx.Response(404)

    api = VARIANTS[variant](emulator.base_url)
    assert_paid_once(work_all(api, [make_job(api, "Late fox")], transport=LosingTransport(missing)), emulator)
    assert late == ["link", "look"]


@pytest.mark.parametrize("variant", ["fal", "replicate"])
def test_a_look_that_hangs_takes_no_request_out_of_the_queue(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    """Seed 41917: the hung look was taken for the end of the queue's patience, which is an hour."""

    def hang(request: httpx.Request, before: int) -> None:
        if before == 0 and unheard_of(request, before) is not None:
            raise httpx.ReadTimeout("", request=request)

    emulator.configure(latency_s=0.2, latency_sigma=0)
    api = VARIANTS[variant](emulator.base_url)
    assert_paid_once(work_all(api, [make_job(api, "Waiting fox")], transport=LosingTransport(hang)), emulator)


def failed_in_the_queue(api: ImageApi, emulator: Emulator, work_all: WorkAll, **more: Any) -> list[Job]:
    """Jobs that the queue kept too long, and finished after the run had given them up."""
    emulator.configure(latency_s=6.0, latency_sigma=0)
    api.request_timeout_s = 50.0  # a second of the emulator's
    jobs = [make_job(api, f"Fox {n}", number=n, **more) for n in range(10)]
    ended = [outcome.job for outcome in work_all(api, jobs, always_fast=True)]
    assert {job.status for job in ended} == {JobStatus.FAILED}
    assert {job.error_class for job in ended} == {ErrorClass.TIMEOUT}
    assert all(job.request_id for job in ended)
    assert [(job.unanswered, job.cost_usd) for job in ended] == [(1, 0.0)] * 10
    while emulator.stats()["in_flight"]:
        time.sleep(0.01)
    assert emulator.bill()["images"] == 10
    for job in ended:
        job.reopen(api.price_usd(job.width, job.height))
    api.request_timeout_s = 3000.0
    return ended


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fal", "replicate", "bfl"])
def test_a_failed_job_keeps_its_request_and_a_retry_asks_for_it_first(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    jobs = failed_in_the_queue(api, emulator, work_all)
    assert_paid_once(work_all(api, jobs), emulator)


@pytest.mark.slow
def test_a_result_of_days_ago_is_taken_from_the_vendors_list(emulator: Emulator, work_all: WorkAll) -> None:
    api = Fal(api_key="k", base_url=emulator.base_url)
    jobs = failed_in_the_queue(api, emulator, work_all)
    headers = {"authorization": "Key k"}
    listed = []
    for job in jobs:
        url = api.look_url(job.request_id or "")
        output = httpx.get(url, headers=headers, trust_env=False).json()
        listed.append({"request_id": job.request_id, "status_code": 200, "json_output": output})

    def forgotten(request: httpx.Request, _: int) -> httpx.Response | None:
        if "by-endpoint" in request.url.path:
            return httpx.Response(200, json={"items": listed, "has_more": False, "next_cursor": None})
        if "/requests/" in request.url.path:
            return httpx.Response(404, json={"detail": "Request not found."})
        return None

    for job in jobs:
        job.started_at = (job.started_at or 0.0) - 3 * 86_400
    assert_paid_once(work_all(api, jobs, transport=LosingTransport(forgotten)), emulator)


def test_a_request_that_nobody_knows_any_more_is_in_doubt_and_made_anew(
    emulator: Emulator, work_all: WorkAll
) -> None:
    api = VARIANTS["bfl"](emulator.base_url)
    url = f"{emulator.base_url}/v1/get_result?id=gone"
    (outcome,) = work_all(api, [make_job(api, request_id=url, attempts=1, started_at=1.0)])
    assert outcome.job.status is JobStatus.DONE
    assert (outcome.job.unanswered, emulator.bill()["images"]) == (1, 1)
