"""Files that are either whole or absent after a kill or a power cut."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def drop_parts(folder: Path) -> None:
    """Remove what a process killed in mid-write left. Only call it while no process works in the folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of another beside it, which takes its name once it is safe on the disk.

    Raises:
        OSError: it could not be written; what was there before is there still.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """The same for content that comes in pieces: a block that raises leaves what was there before."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)  # or a power cut may undo the rename
    finally:
        part.unlink(missing_ok=True)


def make_durable(path: Path) -> None:
    """Wait until a file that is written is safe on the disk, its name as well.

    Raises:
        OSError: it is not.
    """
    _sync(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
