"""A Python function as the judge: what it may answer, how long it may take, and what its faults become."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest
from PIL import Image

from imagemill.cli.command import main
from imagemill.errors import InputError
from imagemill.quality.function_judge import FunctionJudge, load_function
from imagemill.quality.judge import Answer, Candidate, Opinion
from imagemill.runs.preflight import check_all
from imagemill.settings import ApiSettings, ExecutionSettings, PictureSettings, QualitySettings

CANDIDATES = [Candidate(b"", f"prompt {number}", {"id": str(number)}) for number in range(7)]


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def _raise(error: Exception) -> None:
    raise error


def asked(function: Callable[..., object], candidates: Sequence[Candidate] = CANDIDATES) -> list[Answer]:
    async def ask_all() -> list[Answer]:
        answers: dict[str, Answer] = {}
        judge = FunctionJudge(function, batch=3, timeout_s=0.2)

        async def ask(candidate: Candidate) -> None:
            answers[candidate.prompt] = await judge.ask(candidate)

        async with anyio.create_task_group() as group:
            for candidate in candidates:
                group.start_soon(ask, candidate)
        return [answers[candidate.prompt] for candidate in candidates]

    return anyio.run(ask_all)


def test_it_gets_what_gathers_while_it_works_and_answers_for_each() -> None:
    sizes = []

    def judge(candidates: Sequence[Candidate]) -> list[object]:
        sizes.append(len(candidates))
        return [(int(candidate.row["id"]) / 10, candidate.prompt) for candidate in candidates]

    answers = asked(judge)
    assert [answer.opinion for answer in answers] == [Opinion(n / 10, f"prompt {n}") for n in range(7)]
    assert sum(sizes) == 7
    assert max(sizes) == 3


@pytest.mark.parametrize(
    ("given", "failure"),
    [
        (float("nan"), "nan"),
        (1.01, "1.01"),
        (True, "True"),
        ("0.5", "'0.5'"),
        (None, "None"),
        (object(), "object"),
    ],
)
def test_a_score_that_is_none_is_no_opinion(given: object, failure: str) -> None:
    (answer,) = asked(lambda _: [given], CANDIDATES[:1])
    assert answer.opinion is None
    assert failure in answer.failure


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: [0.5] * 9, "it did not return one answer per picture"),
        (lambda _: None, "TypeError"),
        (lambda _: (_ for _ in iter(int, 1)), "one answer per picture"),
        (lambda _: sys.exit(3), "SystemExit"),
        (lambda pictures: pictures.clear() or [], "of which it was given 1"),
        (lambda _: (1 / 0 for _ in "1"), "ZeroDivisionError"),
        (lambda _: [10**5000], "the score of type int is not"),
        (lambda _: _raise(MuteError()), "MuteError, whose text cannot be read"),
    ],
)
def test_its_fault_is_no_opinion(result: Callable[..., object], failure: str) -> None:
    (answer,) = asked(result, CANDIDATES[:1])
    assert answer.opinion is None
    assert failure in answer.failure


def test_a_list_that_it_empties_is_its_own() -> None:
    def judge(pictures: list[Candidate]) -> list[float]:
        return [int(pictures.pop(0).row["id"]) / 10 for _ in range(len(pictures))]

    assert [answer.opinion for answer in asked(judge)] == [Opinion(n / 10) for n in range(7)]


def test_words_are_bounded_and_printable() -> None:
    (answer,) = asked(lambda _: [(0.5, "\x1b[31m" + "long " * 1000)], CANDIDATES[:1])
    assert answer.opinion is not None
    assert len(answer.opinion.words) < 520
    assert answer.opinion.words.startswith("\\x1b[31m")


def test_one_that_hangs_is_given_up_and_after_three_calls_asked_no_more() -> None:
    release, calls = threading.Event(), 0

    def hang(_: object) -> None:
        nonlocal calls
        calls += 1
        release.wait()

    candidates = [Candidate(b"", str(number), {}) for number in range(12)]
    answers = asked(hang, candidates)
    release.set()
    assert calls == 3
    assert {answer.failure for answer in answers} == {
        "no answer within 0.2 s",
        "the judge hangs, and is asked no more",
    }


def test_it_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/", *sys.path])
    Path("found_here.py").write_text("def judge(pictures):\n    return [1.0]\nasync def no(_): ...\n")
    Path("broken_here.py").write_text("1 / 0\n")
    Path("misspelt_here.py").write_text("import sys\nsys.pathh\ndef judge(_): ...\n")
    Path("script_here.py").write_text("def judge(_): ...\nimport sys\nsys.exit(0)\n")
    assert load_function("found_here:judge")([CANDIDATES[0]]) == [1.0]
    for name, words in {
        "found_here:other": "has no 'other'",
        "found_here:no": "--judge found_here:no is not a plain function",
        "found_here:__doc__": "not a plain function",
        "broken_here:judge": "cannot be imported (ZeroDivisionError",
        "misspelt_here:judge": "cannot be imported (AttributeError: module 'sys' has no attribute 'pathh'",
        "script_here:judge": "cannot be imported (SystemExit: 0)",
        "not_there:judge": "No module named 'not_there'",
    }.items():
        with pytest.raises(InputError) as refused:
            load_function(name)
        assert words in str(refused.value)


def test_the_example_tells_white_edges_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    contents = [io.BytesIO() for _ in range(2)]
    for content, colour in zip(contents, ("white", "grey"), strict=True):
        Image.new("RGB", (64, 48), colour).save(content, "PNG")
    white, grey = asked(
        load_function("own_judge:white_edges"),
        [Candidate(content.getvalue(), str(place), {}) for place, content in enumerate(contents)],
    )
    assert white == Answer(Opinion(1.0, "the darkest edge is 100% white"))
    assert grey == Answer(Opinion(0.502, "the darkest edge is 50% white"))


def test_a_name_that_is_wrong_ends_a_run_before_it_begins_and_a_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["run", "none.parquet", "--output", "s3://none/here", "--judge", "not_there:judge"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for judge, words in {
        "not/there": "neither module:function nor",
        "not_there": "neither module:function nor",
        "http://": "not an http or https",
    }.items():
        assert main(["run", "none.parquet", "--output", "s3://none/here", "--judge", judge]) == 2
        assert words in capsys.readouterr().err
    limited = ["--max-cost", "5", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"]
    assert main(["run", "none.parquet", "--output", "s3://none/here", *limited]) == 2
    assert "that of the judge is unknown" in capsys.readouterr().err
    unpriced = QualitySettings(judge="http://127.0.0.1:9/v1", judge_model="m")
    found = check_all(ApiSettings(), None, ExecutionSettings(), PictureSettings(), unpriced, image=False)
    (judged,) = [finding for finding in found if finding.what == "judge"]
    assert (judged.ok, "does not answer" in judged.words) == (False, True)
