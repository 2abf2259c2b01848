"""A job's states: what each change writes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imagemill.jobs import INPUT_FIELDS, CostSource, Job, JobStatus, NewJobs


def job(number: int = 7, **state: object) -> Job:
    made = Job(number, "a", "k", "p", None, 64, 64, 1, 4, "m", "png")
    for name, value in state.items():
        setattr(made, name, value)
    return made


def test_attempts_are_counted_from_the_first() -> None:
    one = job()
    assert (one.attempts, one.retries, one.started_at) == (0, 0, None)
    one.start(5.0)
    one.start(9.0)
    assert (one.status, one.attempts, one.retries, one.started_at) == (JobStatus.RUNNING, 2, 1, 5.0)
    one.requeue()
    assert (one.status, one.attempts) == (JobStatus.PENDING, 2)


def test_money_adds_up_and_is_as_sure_as_its_least_sure_part() -> None:
    one = job()
    one.pay(0.1, CostSource.TOLD)
    one.pay(0.2, CostSource.LIST)
    assert (one.cost_usd, one.cost_source) == (0.3, CostSource.LIST)
    one.pay(0.0, CostSource.UNKNOWN)
    assert one.cost_source == CostSource.UNKNOWN
    assert CostSource.of_total(["", ""]) is None
    free = job()
    free.pay(0.0, "")
    assert free.cost_source == ""


def test_a_lost_answer_that_is_found_is_in_doubt_no_more() -> None:
    one = job()
    one.lose_answer(0.1)
    one.lose_answer(0.2)
    assert (one.unanswered, one.unanswered_usd) == (2, 0.3)
    one.find_request("r", 0.2)
    assert (one.request_id, one.unanswered, one.unanswered_usd) == ("r", 1, 0.1)
    one.find_request("s", 0.3)  # of a price that has changed since: never below nothing
    assert (one.request_id, one.unanswered, one.unanswered_usd) == ("s", 0, 0.0)
    one.find_request("t", 0.3)
    assert (one.request_id, one.unanswered, one.unanswered_usd) == ("t", 0, 0.0)


def test_a_finished_job_has_no_error() -> None:
    one = job(error_class="timeout", error_code="x", error_message="m", retryable=True)
    one.finish(3.0, image="i.png", image_bytes=9, latency_s=0.5)
    assert (one.status, one.image, one.image_bytes, one.latency_s, one.reused, one.finished_at) == (
        JobStatus.DONE, "i.png", 9, 0.5, False, 3.0,
    )  # fmt: skip
    assert (one.error_class, one.error_code, one.error_message, one.retryable) == (None,) * 4
    found = job()
    found.finish(3.0, image="i.png", image_bytes=9, latency_s=None, reused=True)
    assert found.reused


def test_a_failed_job_says_why_in_bounds_and_can_be_reopened() -> None:
    one = job(request_id="r", unanswered=1, unanswered_usd=0.1, cost_usd=0.2)
    one.start(1.0)
    one.fail(3.0, error_class="timeout", code="x", message="m" * 5_000, retryable=True)
    assert (one.status, one.retryable, one.finished_at) == (JobStatus.FAILED, True, 3.0)
    assert (one.error_class, one.error_code, one.error_message) == ("timeout", "x", "m" * 2_000)
    one.reopen(0.1)
    assert (one.status, one.request_id, one.unanswered, one.unanswered_usd) == (
        JobStatus.PENDING,
        "r",
        0,
        0.0,
    )
    assert (one.error_class, one.error_code, one.error_message, one.retryable, one.finished_at) == (None,) * 5
    assert (one.attempts, one.cost_usd) == (1, 0.2)


@pytest.mark.parametrize(("request_id", "doubtful_usd"), [(None, 0.1), ("r", None)])
def test_reopening_leaves_a_doubt_that_nobody_can_settle(
    request_id: str | None, doubtful_usd: float | None
) -> None:
    given = {"request_id": request_id, "unanswered": 1, "unanswered_usd": 0.1, "status": JobStatus.FAILED}
    one, other = job(**given), job(**given)
    one.reopen(doubtful_usd)
    other.reopen()
    assert (one.unanswered, one.unanswered_usd) == (other.unanswered, other.unanswered_usd) == (1, 0.1)


CHANGES: dict[str, Callable[[Job], None]] = {
    "start": lambda one: one.start(1.0),
    "requeue": lambda one: one.requeue(),
    "finish": lambda one: one.finish(1.0, image="i", image_bytes=1, latency_s=1.0),
    "fail": lambda one: one.fail(1.0, error_class="c", code="c", message="m", retryable=True),
    "reopen": lambda one: one.reopen(),
}
ALLOWED = {
    JobStatus.PENDING: {"start", "requeue", "finish", "fail"},
    JobStatus.RUNNING: {"start", "requeue", "finish", "fail"},
    JobStatus.DONE: set(),
    JobStatus.FAILED: {"reopen"},
}


@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize("change", CHANGES)
def test_a_state_changes_only_as_it_may(status: JobStatus, change: str) -> None:
    one = job(status=status)
    if change in ALLOWED[status]:
        CHANGES[change](one)
        return
    with pytest.raises(ValueError, match=f"^job 7 is {status}: it cannot change so$"):
        CHANGES[change](one)
    assert one.status is status


def test_new_jobs_are_the_jobs_they_were_made_of() -> None:
    jobs = [job(number) for number in range(5)]
    columns = NewJobs.of(jobs)
    assert NewJobs.of(columns) is columns
    assert (len(columns), list(columns), columns[2], list(columns[1:3])) == (5, jobs, jobs[2], jobs[1:3])
    assert columns.column("number") == (0, 1, 2, 3, 4)
    assert len(columns.columns) == len(INPUT_FIELDS)
    assert list(NewJobs.of([])) == []


def test_what_is_known_of_earlier_requests_is_kept_whatever_an_api_calls_them() -> None:
    one = job()
    hostile = "lost: 2026-11-28 many\nlisted:a\u2028b"
    for request_id in ("first", hostile):
        one.accept(request_id)
    one.drop_request()
    one.note_lost(["2026-11-28T00:00:00+00:00"])
    one.find_request("second", 0.0, listed=True)
    assert one.is_listed
    assert one.request_ids == {"first", "".join(hostile.split()), "second"}
    assert one.lost_machines == {"2026-11-28T00:00:00+00:00": 0}
    one.drop_request()
    assert not one.is_listed
    one.start(1.0)
    one.finish(2.0, image="a.png", image_bytes=1, latency_s=1.0)
    one.redo()
    assert "second" in one.request_ids
