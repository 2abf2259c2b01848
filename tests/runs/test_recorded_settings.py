"""The record of a run in its bucket: it decides nothing about where this machine's key goes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagemill.errors import InputError
from imagemill.runs.planning import plan_run
from imagemill.runs.recorded_settings import recorded_settings, settings_to_go_on
from imagemill.runs.session import open_session
from imagemill.settings import OutputSettings, RunSettings
from tests.conftest import Command, Place, full_disk
from tests.runs.test_session import settings

ELSEWHERE = "https://collector.example.com/v1"


def test_a_record_from_the_bucket_sends_the_key_nowhere_that_nobody_named(
    place: Place, catalog: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    store = f"sqlite:{tmp_path / 'jobs.db'}"
    more = {
        "api": {"provider": "together", "base_url": ELSEWHERE},
        "quality": {"judge": "json:dumps"},
        "execution": {"run_id": "r", "store": store},
    }
    with open_session(RunSettings.model_validate({**described, **more})) as session:
        plan_run(session)
    output = OutputSettings.model_validate(place.settings())
    assert settings_to_go_on("r", None).api.base_url == ELSEWHERE  # this machine's own record

    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    asks = pytest.raises(InputError, match=r"together key to 'collector\.example\.com'.* --base-url https")
    kept = tmp_path / "another machine/runs/r/unsaved/k.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"a picture of a worker's")
    with asks:
        settings_to_go_on("r", output)
    assert kept.exists()
    assert not (tmp_path / "another machine/runs/r/run.json").exists()  # it would be listed with nothing done
    assert recorded_settings("r", output).api.base_url == ELSEWHERE  # to read a run sends nothing
    for given in (output, None):  # it is here by now, and asks all the same
        with asks:
            settings_to_go_on("r", given)
    with pytest.raises(InputError, match="--judge json:dumps"):
        settings_to_go_on("r", None, base_url=ELSEWHERE)
    with pytest.raises(InputError, match=r"no run 'other' on this machine .*, nor in s3://"):
        settings_to_go_on("other", output)
    mine = {"base_url": "https://mine.example.com/v1", "judge": "json:loads"}
    with pytest.raises(InputError, match=f"--store {store}"):
        settings_to_go_on("r", output, **mine)
    named = settings_to_go_on("r", output, **mine, named=["store"])
    assert (named.api.base_url, named.quality.judge) == tuple(mine.values())


def test_a_damaged_record_in_the_bucket_is_not_fetched(
    place: Place, catalog: Callable[..., str], own_home: Path
) -> None:
    """Its folder moved aside, it would be fetched again."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        session.bucket.write(record := "runs/r/run.json", b"{", "application/json")
    refusal = rf"record {place.uri}/{record} .* damaged\. Start the run under another"
    with pytest.raises(InputError, match=refusal):
        recorded_settings("r", OutputSettings.model_validate(place.settings()))
    assert not (own_home / record).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": "x"},
        {"rows": None},
        {"variants": None},
        {"unique": "many"},
        {"cost_usd": "x"},
        {"columns": []},
    ],
)
def test_a_record_in_the_bucket_whose_counts_are_none_is_not_fetched(
    place: Place, catalog: Callable[..., str], own_home: Path, wrong: dict[str, object]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)
        document = json.loads(session.folder.record.read_bytes())
        document["plan"] |= wrong
        session.bucket.write("runs/r/run.json", json.dumps(document).encode(), "application/json")
    shutil.rmtree(own_home)
    with pytest.raises(InputError, match=r"record s3://.* damaged\. Start the run under another run id"):
        recorded_settings("r", OutputSettings.model_validate(place.settings()))
    assert not own_home.exists()


def test_a_record_with_a_count_of_a_later_version_is_read(
    place: Place, catalog: Callable[..., str], own_home: Path
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)
        document = json.loads(session.folder.record.read_bytes())
        document["plan"]["animated"] = 1
        session.bucket.write("runs/r/run.json", json.dumps(document).encode(), "application/json")
    shutil.rmtree(own_home)
    assert recorded_settings("r", OutputSettings.model_validate(place.settings())).run_id == "r"


@pytest.mark.parametrize("name", ["resume", "retry-failed", "review", "reconcile"])
def test_a_full_disk_that_does_not_take_a_run_from_the_bucket_is_one_sentence(
    place: Place,
    catalog: Callable[..., str],
    command: Callable[..., Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)

    monkeypatch.setattr(os, "fsync", full_disk)
    home = tmp_path / "another machine"
    where = ("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url)
    done = command(name, "r", *where, IMAGEMILL_HOME=str(home))
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"imagemill: Cannot write to the run's folder {home / 'runs/r'} (No space left on device). Make room"
        " there, or set IMAGEMILL_HOME to a folder that can be written.\n"
    )
