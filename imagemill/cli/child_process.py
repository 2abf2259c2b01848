"""The end of a server that was started as a child process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_afterwards(process: subprocess.Popen[bytes], within_s: float) -> Iterator[None]:
    """Ask the process to end once the block is left, and kill it where that takes longer, in seconds."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
