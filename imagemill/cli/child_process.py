"""Ending a server that was started as a child process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_afterwards(process: subprocess.Popen[bytes], within_s: float) -> Iterator[None]:
    """Terminate the process after the block, and kill it if that takes longer than this many seconds."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
