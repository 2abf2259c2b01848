"""The machines' disks: real files, with deaths at each write and what a power cut leaves of them."""

from __future__ import annotations

import errno
import io
import os
import random
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.simulation.process import scene

_WRITES = re.compile("[wax]")
_open, _replace, _unlink, _fsync = Path.open, Path.replace, Path.unlink, os.fsync


class Disk:
    """What of the files below ``home`` is safe on the disk, and whether the disk is full.

    Args:
        full: virtual seconds from when to when nothing more can be written.
    """

    def __init__(self, home: Path, rng: random.Random) -> None:
        self.home = home
        self._prefix = f"{home}/"
        self.full: tuple[float, float] = (0.0, 0.0)
        self._rng = rng
        self._synced: dict[int, bytes] = {}
        self._saved: dict[Path, bytes] = {}
        self._linked: dict[Path, bytes | None] = {}
        """What a path held before a change of its folder that may be undone."""

    def holds(self, path: Path) -> bool:
        """Whether a simulated process is at work on a file of its machine."""
        return scene.world.process is not None and str(path).startswith(self._prefix)

    def is_full(self) -> bool:
        start, end = self.full
        return start <= scene.world.loop.now < end

    def refuse_when_full(self) -> None:
        if scene.world.process is not None and self.is_full():
            scene.world.met["disk: full"] += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def synced(self, descriptor: int) -> None:
        """fsync: the file, or the names in a folder, are safe."""
        found, path = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(found.st_mode):
            for name in [name for name in self._linked if name.parent == path]:
                del self._linked[name]
        elif found.st_nlink:
            self._synced[found.st_ino] = path.read_bytes()

    def opened_anew(self, path: Path) -> None:
        """A file is about to be emptied or made."""
        if not path.exists():
            self._linked.setdefault(path, None)
        else:
            self._synced.pop(path.stat().st_ino, None)

    def replaced(self, path: Path, target: Path) -> None:
        """A file is about to take another's name."""
        before = target.read_bytes() if target.is_file() else None
        self._linked.setdefault(target, before)
        self._linked.pop(path, None)

    def save(self, folder: Path, saved: Path) -> None:
        """Keep a folder as it is at the death of its process, which may yet run into its own ``finally``."""
        shutil.rmtree(saved, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, saved)
            self._saved = {
                path.relative_to(folder): self._synced[path.stat().st_ino]
                for path in folder.rglob("*")
                if path.stat().st_ino in self._synced
            }

    def restore(self, saved: Path, folder: Path) -> None:
        """Put a folder back as it was kept."""
        shutil.rmtree(folder, ignore_errors=True)
        if saved.exists():
            saved.rename(folder)
            for path, content in self._saved.items():
                self._synced[(folder / path).stat().st_ino] = content

    def cut_power(self, folder: Path) -> None:
        """What a power cut leaves: what was not synced may be gone, cut short or there."""
        rng = self._rng
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.name.endswith((".lease", ".sqlite")):
                continue
            if path.name.endswith("-shm"):
                path.unlink()
                continue
            content = path.read_bytes()
            if path.name.endswith("-wal"):
                path.write_bytes(content[: rng.randrange(len(content) + 1)])
                continue
            safe = self._synced.get(path.stat().st_ino)
            if safe != content and rng.random() < 0.6:
                start = len(safe) if safe is not None and content.startswith(safe) else 0
                kept = rng.choice([start, rng.randint(start, len(content))])
                path.write_bytes(content[:kept])
                scene.world.met["power cut: file cut short"] += 1
            if path in self._linked and rng.random() < 0.4:
                before = self._linked[path]
                scene.world.met["power cut: rename undone"] += 1
                if before is None:
                    path.unlink()
                else:
                    path.write_bytes(before)
        self._linked.clear()
        for path in folder.rglob("*"):
            if path.is_file():  # what it has left is safe from the next one
                self._synced[path.stat().st_ino] = path.read_bytes()


class _File(io.FileIO):
    """A file of a simulated process: each write is a point. A full disk still takes half of a first write."""

    _is_cut = False

    def write(self, content: Any) -> int:
        if disk.is_full() and not self._is_cut and len(content) > 1:
            self._is_cut = True
            return super().write(bytes(content)[: len(content) // 2]) or 0
        disk.refuse_when_full()
        scene.world.point("disk write")
        written: int = super().write(content) or 0
        scene.world.point("disk written")
        return written


def _simulated_open(path: Path, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
    if not _WRITES.search(mode) or not disk.holds(path):
        return _open(path, mode, buffering, *rest, **named)
    if "w" in mode or not path.exists():
        disk.opened_anew(path)
    raw = _File(path, mode.replace("b", "").replace("t", ""))
    if "b" in mode:
        if buffering == 0:
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    encoding = named.get("encoding") or (rest[0] if rest else None)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding or "utf-8")


def _simulated_replace(path: Path, target: Path) -> Any:
    if disk.holds(path):
        scene.world.point("disk rename")
        disk.replaced(path, Path(target))
    return _replace(path, target)


def _simulated_unlink(path: Path, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002
    if disk.holds(path):
        scene.world.point("disk unlink")
    _unlink(path, missing_ok=missing_ok)


def _simulated_fsync(descriptor: int) -> None:
    if scene.world.process is not None:
        scene.world.point("disk sync")
        disk.synced(descriptor)
    else:
        _fsync(descriptor)


disk: Disk


@contextmanager
def simulated_disk(home: Path, rng: random.Random) -> Iterator[Disk]:
    """All files that simulated processes write below ``home``, in the block."""
    global disk  # noqa: PLW0603 - what the patched functions below use
    disk = Disk(home, rng)
    with ExitStack() as stack:
        for target, name, value in (
            (Path, "open", _simulated_open),
            (Path, "replace", _simulated_replace),
            (Path, "unlink", _simulated_unlink),
            (os, "fsync", _simulated_fsync),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        try:
            yield disk
        finally:
            shutil.rmtree(home, ignore_errors=True)
