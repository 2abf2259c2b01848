"""imagemill forget: records of old runs go, pictures, manifest and metrics stay."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imagemill.bucket.access import open_bucket
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import output_lease
from imagemill.cli.command import main
from imagemill.runs.folder import RunFolder
from imagemill.runs.planning import plan_run
from imagemill.runs.session import open_session
from imagemill.runs.summary import RunSummary
from imagemill.settings import OutputSettings
from tests.conftest import Place
from tests.runs.test_session import settings

PICTURES = ("images/ab/ab.png", "manifest.parquet", "metrics/run_id=old/run.parquet")


@pytest.fixture
def bucket(place: Place) -> Iterator[ImageBucket]:
    made = open_bucket(OutputSettings.model_validate(place.settings()))
    yield made
    made.close()


@pytest.fixture
def made(
    place: Place, catalog: Callable[..., str], bucket: ImageBucket
) -> Callable[[str, int, bool], RunFolder]:
    """Makes a run that was planned so many days ago, and may have finished."""

    def make(run_id: str, days: int, finished: bool) -> RunFolder:  # noqa: FBT001
        given = settings(place, catalog(prompt=["a"]), run_id=run_id)
        with open_session(given.model_copy(update={"run_id": run_id})) as session:
            plan_run(session)
            folder = session.folder
        record = json.loads(folder.record.read_bytes())
        record["planned_at"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
        folder.record.write_text(json.dumps(record))
        bucket.upload(folder.record, f"runs/{run_id}/run.json", "application/json")
        if finished:
            counts = dict.fromkeys(("rows", "unique", "done", "generated", "requests"), 1)
            folder.write_summary(summary(run_id, place.uri, **counts))
            bucket.upload(folder.summary, f"runs/{run_id}/summary.json", "application/json")
        return folder

    return make


def summary(run_id: str, output: str, **counts: int) -> RunSummary:
    values: dict[str, object] = {"run_id": run_id, "errors": {}, **counts}
    for name, field in RunSummary.model_fields.items():
        if field.is_required() and name not in values:
            values[name] = output if name in {"manifest", "metrics", "report"} else 0
    return RunSummary.model_validate(values)


@contextmanager
def at_work(bucket: ImageBucket, run_id: str) -> Iterator[None]:
    with output_lease(bucket, run_id, print):
        yield


def test_old_runs_are_forgotten_and_nothing_else(
    made: Callable[[str, int, bool], RunFolder],
    place: Place,
    bucket: ImageBucket,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = [("old", 91, True), ("young", 89, True), ("stopped", 99, False), ("busy", 99, True)]
    old, young, stopped, busy = (made(*run) for run in runs)
    for name in PICTURES:
        bucket.write(name, b"kept", "text/plain")
    where = ("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url, "--json")
    with at_work(bucket, "busy"):
        for more, forgotten in (((), []), (("--yes",), ["old"])):
            assert main(["forget", "--older-than", "90d", *where, *more]) == 0
            said = json.loads(capsys.readouterr().out)
            assert (said["found"], said["forgotten"]) == (["old"], forgotten)
            assert said["kept"].keys() == {"stopped", "busy"}
        assert main(["forget", "busy", "--unfinished", *where]) == 2  # never while it is being worked on
    assert [folder.path.exists() for folder in (old, young, stopped, busy)] == [False, True, True, True]
    assert {name.split("/")[1] for name in place.objects() if name.startswith("runs/")} == {
        *("young", "stopped", "busy")
    }

    capsys.readouterr()
    assert main(["forget", "stopped", *where[:-1]]) == 2
    assert "imagemill: Run stopped is kept: it can still be resumed; --unf" in capsys.readouterr().err
    unsaved = stopped.unsaved / "ab.png"
    unsaved.parent.mkdir()
    unsaved.write_bytes(b"paid for")
    assert main(["forget", "stopped", "--unfinished", *where]) == 2
    unsaved.unlink()
    assert main(["forget", "stopped", "young", "--unfinished", *where]) == 0
    assert sorted(name for name in place.objects() if not name.startswith("runs/busy/")) == sorted(PICTURES)
    capsys.readouterr()
    assert main(["forget", "--older-than", "9000d", *where[:-1]]) == 0
    assert "No run is older than 9000d." in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "given", [[], ["r", "--older-than", "1d"], ["--older-than", "soon"], ["nothing"], ["../r"]]
)
def test_what_is_not_clear_deletes_nothing(given: list[str], own_home: Path) -> None:
    folder = own_home / "runs" / "r"
    folder.mkdir(parents=True)
    assert main(["forget", *given]) == 2
    assert folder.exists()
