"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from imagemill.durable import write_whole


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

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    else:
        open_file = Path.open

        def open_full(_path: Path, *given: object, **named: object) -> object:
            return open_file(Path("/dev/full"), *given, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.png", b"after")
    monkeypatch.undo()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.png", b"before")]
