"""The whole error table, on every API: how many requests each fault costs, and where the job ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from imagemill.blocks.apis import ImageApi, Replicate
from imagemill.emulator.faults import FLAWS, NAMES
from imagemill.engine.engine import StopKind
from imagemill.errors import ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import QUEUED, VARIANTS, Outcome, make_job

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Work = Callable[[ImageApi, Job], Outcome]
WorkAll = Callable[[ImageApi, list[Job]], list[Outcome]]

FAILED, PENDING, DONE = JobStatus.FAILED, JobStatus.PENDING, JobStatus.DONE
RETRYABLE, PERMANENT = True, False

# Fault: generation requests, images billed, the job's end, the class of its error, whether it is retryable.
Row = tuple[int, int, JobStatus, ErrorClass | None, bool | None]
EVERYWHERE: dict[str, Row] = {
    "400": (1, 0, FAILED, ErrorClass.BAD_REQUEST, PERMANENT),
    "401": (1, 0, PENDING, None, None),
    "402": (1, 0, PENDING, None, None),
    "429": (4, 0, FAILED, ErrorClass.RATE_LIMITED, RETRYABLE),
    "500": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "502": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "503": (4, 0, FAILED, ErrorClass.RATE_LIMITED, RETRYABLE),  # the emulator's has a Retry-After
    "504": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "hang": (4, 0, FAILED, ErrorClass.TIMEOUT, RETRYABLE),
    "reset": (4, 0, FAILED, ErrorClass.TIMEOUT, RETRYABLE),
    "html": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "wrong_shape": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "fail": (2, 0, FAILED, ErrorClass.SERVER_ERROR, RETRYABLE),
    "truncated": (2, 2, FAILED, ErrorClass.INVALID_IMAGE, RETRYABLE),
    "garbage": (2, 2, FAILED, ErrorClass.INVALID_IMAGE, RETRYABLE),
    "wrong_size": (2, 2, FAILED, ErrorClass.INVALID_IMAGE, RETRYABLE),
    "black": (1, 1, FAILED, ErrorClass.CONTENT_FILTERED, PERMANENT),
    "flagged": (1, 0, FAILED, ErrorClass.CONTENT_FILTERED, PERMANENT),
}
AT_ONCE: dict[str, Row] = {
    # The answer is lost, and nobody can be asked about it: the image is paid for each time.
    "timeout_after_charge": (4, 4, FAILED, ErrorClass.TIMEOUT, RETRYABLE),
    "reset_body": (4, 4, FAILED, ErrorClass.TIMEOUT, RETRYABLE),
    "expired_link": (1, 1, DONE, None, None),  # the image is in the answer
}
IN_QUEUE: dict[str, Row] = {
    # The request is asked about again, and paid for once.
    "timeout_after_charge": (1, 1, FAILED, ErrorClass.TIMEOUT, RETRYABLE),
    "reset_body": (1, 1, DONE, None, None),
    "expired_link": (1, 1, FAILED, ErrorClass.TIMEOUT, RETRYABLE),  # the link may only be late
}
FAL: dict[str, Row] = {
    "expired_link": (1, 1, DONE, None, None),  # its result gives a fresh link
    "flagged": (1, 1, FAILED, ErrorClass.CONTENT_FILTERED, PERMANENT),  # a black image is made and billed
}
RUNWARE: dict[str, Row] = {
    # The task is asked about by the name that we gave it, and paid for once.
    "timeout_after_charge": (1, 1, DONE, None, None),
    "reset_body": (1, 1, DONE, None, None),
    "expired_link": (1, 1, FAILED, ErrorClass.TIMEOUT, RETRYABLE),  # the link may only be late
    "flagged": FAL["flagged"],
}
PATIENCE_S = {"hang": 8.0, "timeout_after_charge": 15.0}
"""Time limits of a request, by the loop's clock, for the faults that end with it."""

LOST = {"timeout_after_charge", "reset_body"}
"""Faults in which the API bills an image that never arrives: what it cost is not known here."""


def expected(variant: str, fault: str) -> Row:
    table = EVERYWHERE | (IN_QUEUE if variant in QUEUED else AT_ONCE)
    if variant == "fal":
        table |= FAL
    elif variant == "fal at once":
        table |= {"flagged": FAL["flagged"]}
    elif variant == "runware":
        table |= RUNWARE
    return table[fault]


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted((NAMES - FLAWS) | {"black"}))
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fault_that_stays(variant: str, fault: str, emulator: Emulator, work: Work) -> None:
    api = VARIANTS[variant](emulator.base_url)
    api.request_timeout_s = PATIENCE_S.get(fault, 500.0)
    if isinstance(api, Replicate) and api.wait_s and fault == "timeout_after_charge":
        # The emulator's clock is a real one: a second there is fifty here.
        api.wait_s, api.request_timeout_s = 1, 65.0
    outcome = work(api, make_job(api, f"A lighthouse in {variant} #fault:{fault}"))
    requests, billed, status, error_class, retryable = expected(variant, fault)
    job = outcome.job
    assert job.status is status, job.error_message
    assert job.error_class == error_class
    assert job.retryable is retryable
    assert emulator.stats()["generation_requests"] == requests
    assert emulator.bill()["images"] == billed
    if fault not in LOST:
        assert job.cost_usd == pytest.approx(emulator.bill()["usd"])
    if fault in {"401", "402"}:
        assert outcome.stopped is not None
        assert outcome.stopped.kind is (StopKind.UNAUTHORIZED if fault == "401" else StopKind.OUT_OF_BUDGET)
    else:
        assert outcome.stopped is None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429*3", "500*1 #fault:429*2 #fault:reset*3", "truncated*1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fault_that_passes(variant: str, fault: str, emulator: Emulator, work: Work) -> None:
    api = VARIANTS[variant](emulator.base_url)
    job = work(api, make_job(api, f"A lighthouse in {variant} #fault:{fault}")).job
    assert job.status is DONE, job.error_message
    assert job.attempts == emulator.stats()["generation_requests"]
    assert job.cost_usd == pytest.approx(emulator.bill()["usd"])


@pytest.mark.parametrize("variant", sorted(QUEUED))
def test_a_job_with_a_request_id_is_asked_about_and_not_sent(
    variant: str, emulator: Emulator, work: Work
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    first = work(api, make_job(api)).job
    assert first.request_id
    again = make_job(api)
    again.request_id = first.request_id
    job = work(api, again).job
    assert job.status is DONE
    assert emulator.stats()["generation_requests"] == 1
    assert emulator.bill()["images"] == 1


@pytest.mark.parametrize("variant", sorted(QUEUED))
def test_a_request_that_is_gone_is_sent_anew(variant: str, emulator: Emulator, work: Work) -> None:
    api = VARIANTS[variant](emulator.base_url)
    job = make_job(api)
    job.request_id = f"{emulator.base_url}/v1/get_result?id=gone" if variant == "bfl" else "gone"
    job = work(api, job).job
    assert job.status is DONE
    assert job.request_id != "gone"
    assert emulator.stats()["generation_requests"] == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_limits_are_rate_limits_and_a_spent_credit_stops(
    variant: str, emulator: Emulator, work: Work
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    emulator.configure(per_minute=6)  # a token in ten real seconds: more than the retries wait
    assert work(api, make_job(api)).job.status is DONE
    limited = work(api, make_job(api, "A second one"))
    assert limited.job.error_class == ErrorClass.RATE_LIMITED
    assert limited.rate_limited == 4
    emulator.configure(per_minute=None, credit_images=1)
    spent = work(api, make_job(api, "A third one"))
    assert (spent.job.status, emulator.bill()["images"]) == (PENDING, 1)
    assert spent.stopped is not None
    assert spent.stopped.kind is StopKind.OUT_OF_BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(QUEUED - {"replicate waiting"}))
def test_asking_too_often_costs_no_budget_and_slows_no_generation(
    variant: str, emulator: Emulator, work_all: WorkAll
) -> None:
    emulator.configure(polls_per_minute=240, latency_s=0.02)
    api = VARIANTS[variant](emulator.base_url)
    api.request_timeout_s = 3000  # by a clock fifty times as fast as the emulator's
    ended = work_all(api, [make_job(api, f"Fox {n}", number=n) for n in range(40)])
    assert {outcome.job.status for outcome in ended} == {DONE}
    assert emulator.stats()["rate_limited"] > 0
    assert ended[0].rate_limited == 0
    assert emulator.stats()["generation_requests"] == 40
