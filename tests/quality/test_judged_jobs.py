"""What a judge's opinion does to one job: which picture stays, and what a kill or a limit leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest

from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.jobs import Job, JobStatus
from imagemill.quality.function_judge import FunctionJudge
from imagemill.quality.inspection import OnSuspect
from imagemill.quality.judge import Answer, Candidate, Judge, Opinion
from imagemill.takes import seed_of
from tests.blocks.apis.variants import VARIANTS
from tests.conftest import Place
from tests.quality.one_job import engine_with, only_job


class Priced(Judge):
    """Scores 0.2, for as much as the next opinion is said to cost."""

    price_usd = 2.0

    async def ask(self, candidate: Candidate) -> Answer:
        del candidate
        return Answer(Opinion(0.2), usd=self.price_usd)


class Late(Judge):
    """Answers only the third time it is asked."""

    price_usd = 0.01

    async def ask(self, candidate: Candidate) -> Answer:
        del candidate
        return Answer(Opinion(0.9), usd=self.price_usd, doubtful_usd=2 * self.price_usd)


class Broken(Judge):
    """Raises what no judge may."""

    async def ask(self, candidate: Candidate) -> Answer:
        raise ValueError(len(candidate.row))


@pytest.fixture
def ended(
    place: Place, emulator: Callable[..., Emulator], tmp_path: Path
) -> Callable[[Judge, OnSuspect], Job]:
    def ended(judge: Judge, on_suspect: OnSuspect, interrupt: threading.Event | None = None) -> Job:
        api = VARIANTS["together"](emulator(pictures="full").base_url)

        async def work() -> Job:
            opened = engine_with(api, place, tmp_path, prompt="A tram", on_suspect=on_suspect, judge=judge)
            async with opened as (engine, cost, store), anyio.create_task_group() as group:
                if interrupt is not None:
                    group.start_soon(engine.abandon_when_interrupted)
                    group.start_soon(engine.run_shard, 0, 0)
                    await anyio.to_thread.run_sync(interrupt.wait)
                    engine.stop(StopKind.INTERRUPTED, "Interrupted.")
                else:
                    await engine.run_shard(0, 0)
                    assert cost.promised_usd == 0.0
            return await only_job(store)

        return anyio.run(work)

    return ended


def scoring(*scores: float, seeds: list[int] | None = None) -> FunctionJudge:
    left = list(scores)

    def score(pictures: list[Candidate]) -> list[tuple[float, str]]:
        if seeds is not None:
            seeds.append(pictures[0].row["seed"])
        return [(left.pop(0), "said")]

    return FunctionJudge(score, batch=1, timeout_s=60.0)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [((0.2, 0.9), 1), ((0.2, 0.3), 1), ((0.3, 0.2), 0), ((0.9,), 0)],
    ids=["better", "less bad", "worse", "right at once"],
)
def test_the_better_of_two_stays(
    ended: Callable[..., Job], place: Place, scores: Sequence[float], kept: int
) -> None:
    seeds: list[int] = []
    job = ended(scoring(*scores, seeds=seeds), OnSuspect.RETRY)
    assert seeds == [seed_of(7, 1 + take) for take in range(len(scores))]
    assert (job.status, job.attempts) == (JobStatus.DONE, len(scores))
    seed = place.head(str(job.image))["Metadata"]["seed"]
    assert seed == str(seed_of(7, 1 + kept))
    assert json.loads(job.quality)["judge_score"] == scores[kept]
    assert job.suspect == ("judged" if scores[kept] < 0.5 else "")


def test_one_that_is_refused_is_in_no_bucket(ended: Callable[..., Job], place: Place, tmp_path: Path) -> None:
    job = ended(scoring(0.2), OnSuspect.FAIL)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "suspect")
    assert job.error_message == "a suspect picture (judged: said)"
    assert json.loads(job.quality)["judge_score"] == 0.2
    assert not place.objects()
    assert not list((tmp_path / "unsaved").iterdir())


@pytest.mark.parametrize("on_suspect", list(OnSuspect))
def test_one_that_is_interrupted_loses_no_picture(
    ended: Callable[..., Job], place: Place, tmp_path: Path, on_suspect: OnSuspect
) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        release.wait()

    job = ended(FunctionJudge(hang, batch=1, timeout_s=60.0), on_suspect, asked)
    release.set()
    if on_suspect is OnSuspect.FAIL:  # a resume uploads it
        assert job.status is JobStatus.PENDING
        assert len(list((tmp_path / "unsaved").iterdir())) == 2
    else:
        assert (job.status, job.suspect) == (JobStatus.DONE, "")
        assert "stopped before the judge's answer" in json.loads(job.quality)["judge_failure"]
        assert len(place.objects()) == 1


@pytest.mark.parametrize("on_suspect", list(OnSuspect))
def test_one_that_raises_costs_no_second_picture(ended: Callable[..., Job], on_suspect: OnSuspect) -> None:
    job = ended(Broken(), on_suspect)
    assert (job.status, job.attempts, job.suspect) == (JobStatus.DONE, 1, "")
    assert json.loads(job.quality)["judge_failure"].startswith("ValueError: ")


def test_what_one_may_have_charged_without_an_answer_is_in_its_cost(ended: Callable[..., Job]) -> None:
    """It counted towards the limit of this process only: each resume could spend it once more."""
    job = ended(Late(), OnSuspect.KEEP)
    assert (job.status, job.judge_usd) == (JobStatus.DONE, pytest.approx(0.03))


def test_one_that_does_not_fit_under_the_limit_is_not_asked(ended: Callable[..., Job]) -> None:
    job = ended(Priced(), OnSuspect.FAIL)
    assert (job.status, job.judge_usd, job.suspect) == (JobStatus.DONE, 0.0, "")
