"""An event loop whose clock runs fast while this process is idle, for waits of seconds over real sockets."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

SPEED = 50.0
"""Seconds on the loop's clock in one real second that all threads of this process have slept through."""

_THREADS = Path("/proc/self/task")


def _busy_s() -> float:
    """For how long this process has used a CPU or waited for one, its threads added up, in seconds."""
    waited_ns = 0
    with suppress(OSError):  # not on Linux: a busy machine makes the clock run fast too
        for thread in _THREADS.iterdir():
            with suppress(OSError):  # it has ended
                waited_ns += int((thread / "schedstat").read_text().split()[1])
    return time.process_time() + waited_ns / 1e9


class _FastSelector(selectors.DefaultSelector):
    """Waits a fraction of the time that the loop, by its own clock, asks for."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.gained_s = 0.0
        self._busy = (lambda: 0.0) if always else _busy_s
        self._last, self._busy_s = time.monotonic(), self._busy()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout / SPEED if timeout is not None else None)
        if timeout is None or timeout > 0:
            now, busy_s = time.monotonic(), self._busy()
            idle_s = now - self._last - (busy_s - self._busy_s)
            self.gained_s += max(0.0, idle_s) * (SPEED - 1)
            self._last, self._busy_s = now, busy_s
        return found


class FastLoop(asyncio.SelectorEventLoop):
    """Sleeps and timeouts take a fiftieth of their time; sockets work as ever.

    Only idle time is short: what this process does, the emulator in its thread included, takes its real
    time, however busy the machine is. So nothing times out that is being worked on. With ``always``, that is
    short too: for what must have timed out before the emulator, by the real clock, is ready.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._fast = _FastSelector(always=always)
        super().__init__(self._fast)
        self._clock_resolution *= SPEED

    def time(self) -> float:
        return super().time() + self._fast.gained_s


def run_fast(function: Callable[..., Awaitable[T]], *arguments: Any, always: bool = False) -> T:
    """Run a coroutine function on a loop of its own whose clock runs fast."""
    factory = partial(FastLoop, always=always)
    return anyio.run(function, *arguments, backend_options={"loop_factory": factory})
