"""The watch for a wrong setup by itself: how many failures, and which, are no row's own."""

from __future__ import annotations

import anyio
import pytest

from imagemill.engine.setup_fault import ALIKE, ANYHOW, WINDOW, SetupFault, is_suspect
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from tests.virtual_time import run

WRONG_SIZE = ApiError(ErrorClass.INVALID_IMAGE, "256 x 256 pixels, not 512 x 512.", code="wrong_size")


def job(number: int) -> Job:
    return Job(number, str(number), "k", "p", None, 64, 64, 1, 4, "m", "png")


def refused(words: str) -> ApiError:
    return ApiError(ErrorClass.BAD_REQUEST, words, code="http_400")


def test_ten_rows_that_fail_alike_stop_a_run_without_an_image() -> None:
    watch = SetupFault(0.8)
    said = [watch.failed(job(number), WRONG_SIZE) for number in range(ALIKE)]
    assert said[:-1] == [None] * (ALIKE - 1)
    assert said[-1] == (
        "The first 10 rows failed in the same way, which no row can help: 256 x 256 pixels, not 512 x 512."
        " Ask for a size that the model makes, by --width and --height. If it is the rows all the same, set"
        " --setup-fault-share 1."
    )
    assert [suspect.number for suspect in watch.suspects()] == list(range(ALIKE))


def test_a_row_that_fails_again_is_one_row() -> None:
    watch = SetupFault(0.8)
    assert not any(watch.failed(job(0), WRONG_SIZE) for _ in range(30))


def test_thirty_rows_that_fail_in_different_words_stop_it_too() -> None:
    watch = SetupFault(0.8)
    names = "abcdefghijklmnopqrstuvwxyzäöüß"
    said = [watch.failed(job(n), refused(f"no {names[n] * 5} here")) for n in range(ANYHOW)]
    assert said[:-1] == [None] * (ANYHOW - 1)
    assert said[-1] is not None
    assert said[-1].startswith(
        "The first 30 rows failed, the latest so, which no row can help: no ßßßßß here."
        " Check --model, the size of the images and further fields of the request."
    )


def test_words_that_vary_with_the_row_are_alike() -> None:
    watch = SetupFault(0.8)
    said = [watch.failed(job(n), refused(f"Seed {n} of 'row {n}' is \"x{n}\" `y{n}`")) for n in range(ALIKE)]
    assert said[-1] is not None


def test_pictures_that_are_wrong_in_other_words_are_alike() -> None:
    watch = SetupFault(0.8)
    errors = [ApiError(ErrorClass.INVALID_IMAGE, "wrong " * n, code="wrong_size") for n in range(ALIKE)]
    said = [watch.failed(job(n), error) for n, error in enumerate(errors)]
    assert said[-1] is not None


def test_what_is_on_its_way_may_bring_an_image_and_is_waited_for() -> None:
    async def scenario() -> None:
        watch = SetupFault(0.8)
        for number in range(ALIKE + 1):
            await watch.admit(job(number), anyio.Event())
        assert not any(watch.failed(job(number), WRONG_SIZE) for number in range(ALIKE))
        said = watch.failed(job(ALIKE), ApiError(ErrorClass.TIMEOUT, "late"))
        assert said is not None
        assert said.startswith("The first 10 rows failed in the same way")

    run(scenario)


def test_after_an_image_a_share_of_the_latest_requests_counts() -> None:
    watch = SetupFault(0.8)
    watch.succeeded(job(0))
    said = [watch.failed(job(n), WRONG_SIZE) for n in range(1, WINDOW)]
    assert said[:-1] == [None] * (WINDOW - 2)  # there were no fifty yet
    assert said[-1] is not None  # 49 of the last 50
    assert said[-1].startswith("49 of the last 50 requests failed in the same way")


@pytest.mark.parametrize(("failures", "stops"), [(40, False), (41, True)])
def test_the_share_is_exceeded_not_met(failures: int, stops: bool) -> None:  # noqa: FBT001
    watch = SetupFault(0.8, worked=True)
    for number in range(WINDOW - failures):
        watch.succeeded(job(number))
    said = [watch.failed(job(100 + number), WRONG_SIZE) for number in range(failures)]
    assert (said[-1] is not None) is stops


def test_a_share_of_one_turns_it_off() -> None:
    watch = SetupFault(1)
    assert not any(watch.failed(job(number), WRONG_SIZE) for number in range(100))


def test_a_first_failure_holds_back_all_but_ten_until_those_have_ended() -> None:
    admitted: list[int] = []

    async def scenario() -> None:
        watch, stopping = SetupFault(0.8), anyio.Event()

        async def send(number: int) -> None:
            await watch.admit(job(number), stopping)
            admitted.append(number)

        async with anyio.create_task_group() as group:
            for number in range(5):
                await send(number)
            watch.failed(job(0), WRONG_SIZE)  # one has failed, four are on their way
            for number in range(5, 20):
                group.start_soon(send, number)
            await anyio.sleep(1)
            assert admitted == list(range(10))  # one failed, nine on their way
            watch.leave(job(9))  # it was not sent after all
            await anyio.sleep(1)
            assert admitted == list(range(11))
            watch.succeeded(job(1))
            await anyio.sleep(1)
            assert admitted == list(range(20))

    run(scenario)


def test_a_stop_ends_the_waiting() -> None:
    async def scenario() -> None:
        watch, stopping = SetupFault(0.8), anyio.Event()
        for number in range(10):
            await watch.admit(job(number), stopping)
        watch.failed(job(0), WRONG_SIZE)
        async with anyio.create_task_group() as group:
            group.start_soon(watch.admit, job(11), stopping)
            await anyio.sleep(1)
            assert group.cancel_scope.deadline > 1
            stopping.set()
            watch.stop()

    run(scenario)


@pytest.mark.parametrize(
    ("error", "suspect"),
    [
        (WRONG_SIZE, True),
        (refused("no"), True),
        (ApiError(ErrorClass.SERVER_ERROR, "x", code="unknown_answer"), True),
        (ApiError(ErrorClass.SERVER_ERROR, "x", code="http_500"), False),
        (ApiError(ErrorClass.INVALID_IMAGE, "x", code="image_link_expired"), False),
        (ApiError(ErrorClass.INVALID_IMAGE, "x", code="answer_too_large"), False),
        (ApiError(ErrorClass.BAD_REQUEST, "x", code="prompt_too_long"), False),
        (ApiError(ErrorClass.BAD_REQUEST, "x", code="size"), False),
        (ApiError(ErrorClass.TIMEOUT, "x"), False),
        (ApiError(ErrorClass.CONTENT_FILTERED, "x", code="blank_image"), True),
        (ApiError(ErrorClass.CONTENT_FILTERED, "x", code="flagged"), False),
    ],
)
def test_what_may_be_the_setups_fault(error: ApiError, suspect: bool) -> None:  # noqa: FBT001
    assert is_suspect(error) is suspect
