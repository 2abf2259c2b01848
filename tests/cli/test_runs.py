"""imagemill runs: what was, and why a job failed, from this machine's folders and from the bucket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.engine.job_log import JobLog
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.retry_failed import retry_failed
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")

CATALOG = {
    "id": ["good", "bad\x1b[31m", "again", "twin", "blank"],
    "prompt": ["an owl", "a tram #fault:400", "a fox #fault:500*1", "an owl", " "],
}


def generate(place: Place, emulated: Emulator, path: str, run_id: str) -> Any:
    return generate_catalog(
        catalog=path,
        api={"provider": "together", "base_url": emulated.base_url},
        output=place.settings(replace_manifest=True),
        picture={"width": 256, "height": 256},
        execution={"run_id": run_id},
    )


@pytest.fixture
def runs(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What ``imagemill runs`` prints."""

    def ask(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["runs", *arguments]) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return ask


@pytest.mark.slow
def test_lists_runs_and_says_why_a_job_failed(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    runs: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    emulated = emulator()
    generate(place, emulated, catalog(prompt=["x", "y"]), "first")
    summary = generate(place, emulated, catalog("shop.parquet", **CATALOG), "second")
    assert (summary.done, summary.failed, summary.rejected) == (2, 1, 1)

    here = ()
    bucket = ("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url)
    for where in (here, bucket):
        listed = json.loads(runs(*where, "--json"))["runs"]
        assert [(run["run_id"], run["state"]) for run in listed] == [
            ("second", "failures"),
            ("first", "done"),
        ]
        listed.sort(key=lambda run: run["run_id"], reverse=True)  # planned within the same second
        assert (listed[0]["done"], listed[0]["failed"], listed[0]["pending"]) == (2, 1, 0)
        assert listed[0]["cost_usd"] == pytest.approx(summary.cost_usd)
        assert listed[0]["catalog"].endswith("shop.parquet")

        found = json.loads(runs("second", *where, "--json"))
        assert found["summary"] == json.loads(summary.model_dump_json())

        (job,) = json.loads(runs("second", *where, "--failed", "--json"))["failed"]
        assert (job["id"], job["error_class"]) == (CATALOG["id"][1], "bad_request")
        assert (job["attempts"], job["retryable"], job["prompt"]) == (1, False, "a tram #fault:400")
        assert job["message"]
        assert [attempt["error_class"] for attempt in job["history"]] == ["bad_request"]

        again = json.loads(runs("second", *where, "--id", "again", "--json"))
        assert (again["status"], again["attempts"]) == ("done", 2)
        assert [attempt["error_class"] for attempt in again["history"]] == ["server_error"]
        assert again["history"][0]["retry_in_s"] == pytest.approx(2, abs=0.01)
        twin = json.loads(runs("second", *where, "--id", "twin", "--json"))
        assert (twin["id"], twin["status"]) == ("twin", "done")
        assert twin["image"].startswith("images/")
        blank = json.loads(runs("second", *where, "--id", "blank", "--json"))
        assert (blank["status"], blank["message"]) == ("rejected", "blank prompt")
        monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "home"))

    assert "second" in runs()
    assert "imagemill runs second --failed" in runs("second")
    shown = runs("second", "--failed")
    assert "bad\\x1b[31m: failed" in shown
    assert "\x1b[31m" not in shown
    assert "bad_request" in shown
    assert "would fail again" in shown
    assert "reason    blank prompt" in runs("second", "--id", "blank")


@pytest.mark.slow
def test_a_job_that_was_tried_again_and_done_has_not_failed(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], runs: Callable[..., str]
) -> None:
    path = catalog(id=["a"], prompt=["a fox #fault:500*2"])
    assert generate(place, emulator(), path, "twice").failed == 1
    assert "a: failed" in runs("twice", "--failed")
    assert retry_failed("twice").failed == 0
    assert "No job of run twice failed." in runs("twice", "--failed")
    story = json.loads(runs("twice", "--id", "a", "--json"))
    assert (story["status"], len(story["history"])) == ("done", 2)


def test_a_run_that_is_worked_on_and_one_that_was_killed(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    runs: Callable[..., str],
    own_home: Path,
) -> None:
    generate(place, emulator(), catalog(prompt=["a", "b #fault:400"]), "mine")
    folder = own_home / "runs" / "mine"
    (folder / "summary.json").unlink()
    (listed,) = json.loads(runs("--json"))["runs"]
    assert (listed["state"], listed["done"], listed["failed"]) == ("unfinished", 1, 1)
    assert listed["cost_usd"] > 0
    assert "Resume with: imagemill resume mine" in runs("mine")

    log = JobLog("mine", folder / "log.jsonl")
    assert json.loads(runs("mine", "--json"))["state"] == "running"
    log.close()

    for damaged in ("{", "[]", '{"plan": {"rows": "x"}}', '{"plan": {"unique": "x", "cost_usd": null}}'):
        (folder / "run.json").write_text(damaged)
        (listed,) = json.loads(runs("--json"))["runs"]
        assert (listed["catalog"], listed["unique"], listed["done"]) == (None, None, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nobody"], "There is no run 'nobody' here"),
        (["../x"], "There is no run '../x' here"),
        (["--failed"], "Name a run"),
        (["--output", "nowhere"], "is not of the form s3://BUCKET/PREFIX"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    runs: Callable[..., str], arguments: list[str], sentence: str
) -> None:
    said = runs(*arguments, code=2)
    assert sentence in said
    assert said.count("\n") == 1


def test_a_row_that_never_was(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], runs: Callable[..., str]
) -> None:
    generate(place, emulator(), catalog(prompt=["a"]), "small")
    assert "had no row with the id '7842'" in runs("small", "--id", "7842", code=2)
    assert "There are no runs" not in runs()


def test_a_listing_loads_no_prefect() -> None:
    code = (
        "import sys; from imagemill.cli.command import main; main(['runs']);"
        "sys.exit(bool({'prefect', 'boto3', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "There are no runs.\n")


@pytest.mark.parametrize(
    ("width", "hidden"),
    [(40, ["CATALOG", "WHEN", "API", "COST"]), (80, ["CATALOG", "API"]), (200, []), (None, [])],
)
def test_the_list_fits_a_narrow_terminal(
    width: int | None,
    hidden: list[str],
    runs: Callable[..., str],
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = own_home / "runs" / "20261128-072956-a1b2c3"
    folder.mkdir(parents=True)
    settings = {"catalog": {"path": "spring/shop.parquet"}, "api": {"provider": "together"}}
    record = {"settings": settings, "plan": {"unique": 10}, "planned_at": "2026-11-28T07:29:56"}
    (folder / "run.json").write_text(json.dumps(record))
    if width is not None:
        console = Console(force_terminal=True, color_system=None, width=width)
        monkeypatch.setattr("imagemill.cli.listing.stdout", console)
    title, run, *hint = runs().splitlines()
    assert folder.name in run
    assert [name for name in (*hidden, "DONE") if name in title] == ["DONE"]
    assert [name for name in hidden if name not in "".join(hint)] == []
    assert bool(hint) == bool(hidden)
    assert width is None or max(len(title), len(run)) <= width
