"""Makes the memory allocators of a command's process keep less than they do by default."""

from __future__ import annotations

import ctypes
import os
import sys

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
