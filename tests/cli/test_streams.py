"""stdout and stderr that are full, closed or not UTF-8: one sentence or none, and no run is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.emulator import Emulator
from tests.cli.test_command import arguments
from tests.conftest import Place
from tests.patience import PATIENCE_S

COMMAND = (sys.executable, "-m", "imagemill")


def ended(given: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *given], check=False, text=True, **more)


@pytest.mark.parametrize("given", [["models"], ["models", "--json"], ["--help"]], ids=" ".join)
def test_a_full_disk_under_stdout_is_one_sentence(given: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = ended(given, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == (
        "imagemill: The output could not be written (No space left on device). Make room, or send it"
        " somewhere else. What a run has done is kept: imagemill runs shows it.\n"
    )


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = ended(["models"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen([*COMMAND, "models", "--json"], stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as output:
            models = json.load(output)
        assert (process.wait(PATIENCE_S), process.communicate()[1]) == (0, b"")
    assert len(models) > 20


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    table = ended(["models"], env=ascii_only, capture_output=True)
    assert (table.returncode, table.stderr) == (0, "")
    assert "USD at 1024\\u00b2" in table.stdout
    missing = ended(["estimate", "bücher 📚.parquet"], env=ascii_only, cwd=tmp_path, capture_output=True)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == "imagemill: The catalog 'b\\u00fccher \\ud83d\\udcda.parquet' does not exist.\n"


@pytest.mark.slow
def test_a_run_outlives_its_stdout_and_stderr(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    prefect_server: str,
    own_home: Path,
) -> None:
    path = catalog(prompt=[f"p{n}" for n in range(20)])
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    for run_id, closed, more in (("full", "", []), ("closed", ">&- 2>&- <&-", ["--log-format", "text"])):
        emulated = emulator()
        given = [*COMMAND, "run", path, *arguments(place, emulated, "--run-id", run_id, *more)]
        with Path("/dev/full").open("w") as full:
            code = subprocess.call(
                ["sh", "-c", f'exec "$@" {closed}', "sh", *given], env=environment, stdout=full, stderr=full
            )
        assert code == (1 if run_id == "full" else 0)
        summary = json.loads((own_home / "runs" / run_id / "summary.json").read_text())
        assert (summary["done"], summary["stopped"]) == (20, None)
