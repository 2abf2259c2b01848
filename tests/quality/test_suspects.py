"""What becomes of pictures that look wrong, in whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.runs.summary import RunStoppedError, RunSummary
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")

FLAWS = ["blurred", "flat", "half_decoded", "letterboxed", "near_duplicate", "near_duplicate"]


@pytest.fixture
def run(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> Callable[..., tuple[RunSummary, Emulator, dict[str, dict[str, Any]]]]:
    emulated = emulator(pictures="full")

    def run(prompts: list[str], **quality: str) -> tuple[RunSummary, Emulator, dict[str, dict[str, Any]]]:
        summary = generate_catalog(
            catalog=catalog(
                id=[str(number) for number in range(len(prompts))],
                prompt=prompts,
                sku=[f"sku-{number}" for number in range(len(prompts))],
                bad=["bad" in prompt for prompt in prompts],
            ),
            output=place.settings(),
            api={"provider": "together", "base_url": emulated.base_url},
            picture={"width": 256, "height": 256},
            quality={"measure": "all", **quality},
            execution={"run_id": "looked-at"},
        )
        return summary, emulated, {job["id"]: job for job in place.table("runs/looked-at/jobs.parquet")}

    return run


def test_they_are_kept_flagged_counted_and_shown_first(
    run: Callable[..., Any], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    flawed = [f"{number} #fault:{flaw}" for number, flaw in enumerate(FLAWS)]
    summary, _, jobs = run([*(f"fine {number}" for number in range(6)), *flawed])
    assert [jobs[str(number)]["suspect"] for number in range(12)] == [*[""] * 6, *FLAWS]
    assert (summary.done, summary.measured, summary.suspect) == (12, 12, 6)
    assert len({job["phash"] for job in jobs.values()}) == 11
    (row,) = place.table("metrics/run_id=looked-at/run.parquet")
    assert row["suspect"] == 6
    assert row["p5_sharpness"] < row["p50_sharpness"] < row["p95_sharpness"]
    assert sum(bucket["suspect"] for bucket in place.table("runs/looked-at/metrics.parquet")) == 6
    report = place.read("runs/looked-at/report.html").decode()
    assert "6 of 12 measured pictures look wrong" in report
    assert report.index('class="suspect">half decoded') < report.index("fine 0")

    assert main(["review", "looked-at", "--json"]) == 0
    review = json.loads(capsys.readouterr().out)
    assert (review["suspect"], review["shown"]) == (6, 6)
    page = place.read("runs/looked-at/review.html").decode()
    assert page == Path(review["file"]).read_text()
    assert page.count("<article") == 6
    assert page.index("Half decoded") < page.index("Letterboxed")
    assert page.count('alt="Looks the same') == 2
    assert jobs["10"]["near_duplicate_of"] == 11


def test_a_retried_one_gives_way_to_a_better_one_and_else_stays(
    run: Callable[..., Any],
) -> None:
    summary, emulated, jobs = run(["better #fault:blurred*1", "no better #fault:flat"], on_suspect="retry")
    assert [jobs[name]["suspect"] for name in "01"] == ["", "flat"]
    assert (summary.done, summary.failed, summary.suspect) == (2, 0, 1)
    assert emulated.bill()["images"] == 4
    assert summary.cost_usd == pytest.approx(emulated.bill()["usd"])
    seeds = {request["body"]["seed"] for request in emulated.requests(last=10)}
    assert len(seeds) == 4, "another seed each time"


def test_a_run_may_fail_them(run: Callable[..., Any]) -> None:
    summary, emulated, jobs = run(["fine", "bad #fault:letterboxed"], on_suspect="fail")
    assert (jobs["1"]["status"], jobs["1"]["error_code"]) == ("failed", "suspect")
    assert (summary.done, summary.failed, emulated.bill()["images"]) == (1, 1, 2)


def test_a_placeholder_stops_the_run_before_it_pays_for_more(run: Callable[..., Any]) -> None:
    with pytest.raises(RunStoppedError, match="a placeholder") as stopped:
        run([f"{number} #fault:placeholder" for number in range(300)])
    summary = stopped.value.summary
    assert (summary.done, summary.pending) == (0, 300)
    assert summary.requests < 30


def test_pictures_that_were_placeholders_are_made_by_a_resume(run: Callable[..., Any], place: Place) -> None:
    prompts = [*(f"{number} #fault:placeholder*{number // 2 + 1}" for number in range(3)), "fine"]
    with pytest.raises(RunStoppedError, match="a placeholder"):
        run(prompts)
    assert [row["uri"] for row in place.table("manifest.parquet")][:3] == [None] * 3
    assert sum(name.startswith("images/") for name in place.objects()) <= 1, "no other run finds them"
    with pytest.raises(RunStoppedError, match="a placeholder") as stopped:  # by the first: its file is known
        run(prompts)
    assert stopped.value.summary.done <= 3
    summary, _, jobs = run(prompts)
    assert (summary.done, summary.suspect) == (4, 0)
    assert len({job["phash"] for job in jobs.values() if job["phash"]}) >= 3


JUDGE = """
def by_prompt(pictures):
    assert all(picture.image().size == (256, 256) for picture in pictures)
    return [(0.2, f"<b>{picture.row['sku']}</b>") if picture.row["bad"] else 0.8 for picture in pictures]
"""


def test_a_judge_of_ones_own_flags_pictures_beside_the_measures(
    run: Callable[..., Any], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_by_prompt.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    summary, _, jobs = run(["fine", "bad", "bad #fault:blurred"], judge="judge_by_prompt:by_prompt")
    assert [jobs[name]["suspect"] for name in "012"] == ["", "judged", "blurred,judged"]
    assert [(jobs[name]["judge_score"], jobs[name]["judge_words"]) for name in "01"] == [
        (pytest.approx(0.8), ""),
        (pytest.approx(0.2), "<b>sku-1</b>"),
    ]
    assert (summary.done, summary.suspect, summary.judged, summary.judge_cost_usd) == (3, 2, 3, 0.0)
    report = place.read("runs/looked-at/report.html").decode()
    assert "&lt;b&gt;sku-1&lt;/b&gt;" in report
    assert "<b>sku-1</b>" not in report
    assert main(["review", "looked-at"]) == 0
    assert "score 0.20. &lt;b&gt;sku-1" in place.read("runs/looked-at/review.html").decode()


def test_a_vision_model_fails_pictures_and_is_paid_within_the_limit(
    run: Callable[..., Any],
    emulator: Callable[..., Emulator],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judging = emulator(api_keys=["the-judges-own-key"])
    monkeypatch.setenv("IMAGEMILL_JUDGE_KEY", "the-judges-own-key")
    judge = {
        "judge": f"{judging.base_url}/judge/v1",
        "judge_model": "gpt-4o-mini",
        "judge_usd_per_million_input_tokens": 2.5,
        "judge_usd_per_million_output_tokens": 10,
        "on_suspect": "fail",
    }
    prompts = ["fine", "bad #score:0.3", "mute #score:prose", "lost #score:500"]
    summary, emulated, jobs = run(prompts, **judge)
    assert [jobs[name]["status"] for name in "0123"] == ["done", "failed", "done", "done"]
    assert [jobs[name]["judge_score"] for name in "0123"] == [
        pytest.approx(0.9),
        pytest.approx(0.3),
        None,
        None,
    ]
    (failed,) = place.table("runs/looked-at/failed.parquet")
    assert failed["error_message"] == "a suspect picture (judged: It is a picture.)"
    bill = judging.bill()["chat"]
    assert bill["requests"] == 3
    assert summary.judge_cost_usd == pytest.approx(
        bill["prompt_tokens"] * 2.5e-6 + bill["completion_tokens"] * 10e-6, abs=1e-12
    )
    assert summary.cost_usd == pytest.approx(emulated.bill()["usd"] + summary.judge_cost_usd, abs=1e-12)
    assert sum(job["cost_usd"] for job in jobs.values()) == pytest.approx(summary.cost_usd, abs=1e-12)
    assert sum(job["judge_usd"] for job in jobs.values()) == pytest.approx(summary.judge_cost_usd, abs=1e-12)
    assert (summary.judged, summary.unjudged, summary.cost_source) == (2, 2, "list")
    assert jobs["3"]["judge_failure"] == "HTTP 500: Not now."
    assert "The judge scored 2 pictures for $" in place.read("runs/looked-at/report.html").decode()
    assert "the-judges-own-key" not in str(place.objects())
    again, _, _ = run(prompts, **judge)
    assert again.cost_usd == summary.cost_usd
    assert judging.bill()["chat"]["requests"] == 3, "a picture that is judged is not judged again"
