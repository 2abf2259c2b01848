"""An event loop whose clock jumps to the next timer: hours of waiting pass in milliseconds."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Real scheduling, no real waiting. For code without sockets."""

    _virtual_now = 0.0
    _timer_cancelled_count: int

    def time(self) -> float:
        return self._virtual_now

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():  # or the loop would wait for the next one after it
            heapq.heappop(timers)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and timers:  # type: ignore[attr-defined]
            self._virtual_now = max(self._virtual_now, timers[0].when())
        super()._run_once()  # type: ignore[misc]


def run(function: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run a coroutine function in virtual time."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": VirtualClockLoop})
