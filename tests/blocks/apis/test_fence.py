"""A job that another process took over while this one stood still is neither bought nor written here."""

from __future__ import annotations

from collections.abc import Callable

from imagemill.emulator import Emulator
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import VARIANTS, Outcome, make_job


def test_what_was_taken_over_is_not_bought(
    emulator: Emulator, work_all: Callable[..., list[Outcome]]
) -> None:
    api = VARIANTS["together"](emulator.base_url)

    async def even(job: Job) -> bool:
        return job.number % 2 == 0

    ended = work_all(api, [make_job(api, f"Fox {n}", number=n) for n in range(20)], fence=even)
    assert [outcome.job.status for outcome in ended] == [JobStatus.DONE, JobStatus.PENDING] * 10
    assert {outcome.job.attempts for outcome in ended} == {0, 1}
    assert emulator.bill()["images"] == 10


def test_a_retry_of_what_was_taken_over_meanwhile_is_not_bought(
    emulator: Emulator, work_all: Callable[..., list[Outcome]]
) -> None:
    api = VARIANTS["together"](emulator.base_url)
    asked: list[int] = []

    async def once(job: Job) -> bool:
        asked.append(job.number)
        return len(asked) == 1

    (outcome,) = work_all(api, [make_job(api, "Fox #fault:500*1")], fence=once)
    assert asked == [0, 0]
    assert outcome.stopped is None
    # As it was saved before the retry: its new owner's state is not written over.
    assert outcome.job.status is JobStatus.PENDING
    assert emulator.bill()["images"] == 0
