"""What a terminal shows of a run, however narrow."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from imagemill.cli.terminal import pace_line, progress_shown
from imagemill.engine.recorder import Progress

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
