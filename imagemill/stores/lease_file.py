"""A lease as a file beside a checkpoint, for stores without a server."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class LeaseFile:
    """The file contains the holder, or nothing if the lease is free. Its modification time is the expiry.

    A renewal therefore needs no space on a full disk. Every operation holds the file's lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, holder: str, instead_of: str | None, lease_s: float) -> str:
        """Take the lease if it is free, expired or held by ``instead_of``; its holder then."""
        with self._locked() as (file, held):
            expired = os.fstat(file.fileno()).st_mtime < time.time()
            if held and held not in {holder, instead_of} and not expired:
                return held
            file.truncate(0)
            file.write(holder.encode())
            file.flush()
            self._hold(file, lease_s)
            return holder

    def renew(self, holder: str, lease_s: float) -> bool:
        """Renew the lease; False if another process holds it."""
        with self._locked() as (file, held):
            if held == holder:
                self._hold(file, lease_s)
            return held == holder

    def free(self, holder: str) -> None:
        """Release the lease, if ``holder`` has it."""
        with self._locked() as (file, held):
            if held == holder:
                file.truncate(0)

    def _hold(self, file: BinaryIO, lease_s: float) -> None:
        expiry = time.time() + lease_s
        os.utime(file.fileno(), (expiry, expiry))

    @contextmanager
    def _locked(self) -> Iterator[tuple[BinaryIO, str]]:
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            file.seek(0)
            yield file, file.read().decode(errors="replace")
