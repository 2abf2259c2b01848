"""A file is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagemill.catalog.counts import PlanCounts
from imagemill.durable import drop_parts, write_whole, written_whole
from imagemill.runs.folder import RunFolder
from imagemill.settings import RunSettings
from tests.conftest import full_disk


def test_a_file_is_there_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.png", b"first")
    write_whole(tmp_path / "new" / "a.png", b"second")
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "new").iterdir()] == [("a.png", b"second")]


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step == "write" and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "a.png").write_bytes(b"before")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        open_file = Path.open

        def open_full(_path: Path, *given: object, **named: object) -> object:
            return open_file(Path("/dev/full"), *given, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.png", b"after")
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"before")]


def test_a_runs_record_is_written_once_its_plan_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut that keeps the record and not the plan would leave a run that cannot be resumed."""
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path))
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    folder = RunFolder("r")
    folder.create()
    for file in (folder.plan, folder.rejected):
        file.write_bytes(b"planned")
    settings = RunSettings(run_id="r", catalog="c.parquet", api="together", output="s3://b/p")  # type: ignore[arg-type]
    folder.write_record(settings, PlanCounts(1, 0, 1, 0, 0.0, 0.0), "digest", "model")
    record = next(place for place, name in enumerate(synced) if name.startswith(".run.json"))
    assert {"plan.parquet", "rejected.parquet", "r"} <= set(synced[:record])
    assert "r" in synced[record:]  # the folder again, or the rename may be undone


KILLED = "import os, sys; from pathlib import Path; from imagemill.durable import write_whole\n"
KILLED += "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
KILLED += "write_whole(Path(sys.argv[1]), b'half')"


def test_a_kill_in_mid_write_leaves_nothing_for_ever(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.png")], check=False)
    assert killed.returncode == -9
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    write_whole(tmp_path / "b.png", b"whole")
    drop_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]


def test_content_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    """A plan or a model's schema that is cut short would be read as a whole one at the next start."""

    def write_half() -> None:
        with written_whole(tmp_path / "plan.parquet") as file:
            file.write(b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        write_half()
    assert list(tmp_path.iterdir()) == []
