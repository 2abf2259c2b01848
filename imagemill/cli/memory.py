"""Memory of a command's process: what its allocators keep, and when Python looks for garbage."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_ARENA_MAX = -8
_ARENAS = 2


def keep_little() -> None:
    """Let all threads share a few heaps; call this before pyarrow is loaded.

    A run has dozens of threads that allocate now and then. glibc gives each of them a heap of its own, and
    Arrow's own allocator does the same: together they would keep some 70 MB that nothing uses.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has one heap, and none of this
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, _ARENAS)


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for no garbage while the process loads its libraries (until :func:`collect`) and when it ends.

    Half a million objects live from the first second to the last. To go through them again and again takes
    a seventh of the CPU of loading them, and most of the CPU of the exit.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()


def collect() -> None:
    """From now on, look for garbage as usual, but not among what was loaded."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
