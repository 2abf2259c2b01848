"""What a terminal shows of a run, however narrow."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from imagemill.cli.terminal import pace_line, progress_shown, show_summary
from imagemill.engine.recorder import Progress
from tests.cli.test_forget import summary

PROGRESS = Progress(
    run_id="r",
    unique=50_000,
    done=1_234,
    failed=56,
    images_per_minute=1_800.0,
    p95_latency_s=1.25,
    rate_limited=78,
    retries=80,
    errors={},
    concurrency=18,
    in_flight=60,
    cost_usd=3.456,
)


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (40, ["1234/50000", "failed 56", "0:00:00"]),
        (80, ["Generating", "1234/50000", "failed 56 · $3.46", "left", "0:00:00"]),
        (160, ["Generating", "╸", "1234/50000", "1,800/min", "60 in flight, limit now 18", "429s 78"]),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most(
    width: int, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr("imagemill.cli.terminal.stderr", console)
    with progress_shown() as show:
        show(PROGRESS)
    last = screen.getvalue().splitlines()[-2]
    assert [part for part in parts if part not in last] == [], last


def test_what_is_in_flight_is_a_part_of_the_limit_until_that_falls() -> None:
    assert "60 in flight, limit now 18 " in pace_line(PROGRESS)
    assert "17/18 in flight" in pace_line(replace(PROGRESS, in_flight=17))


def test_requests_without_an_answer_may_yet_be_found_by_a_resume(capsys: pytest.CaptureFixture[str]) -> None:
    ended = summary("r", "s3://tests/x", unanswered=2)
    for stopped, found in ((None, False), ("Interrupted.", True)):
        show_summary(ended.model_copy(update={"stopped": stopped}))
        shown = capsys.readouterr().out
        assert "Requests without an answer: 2." in shown
        assert ("A resume first asks for those that the API keeps." in shown) is found
