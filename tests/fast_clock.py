"""An event loop whose clock runs faster than the real one, for waits of seconds over real sockets."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

SPEED = 50.0
"""Seconds on the loop's clock in one real second."""


class _FastSelector(selectors.DefaultSelector):
    """Waits a fraction of the time that the loop, by its own clock, asks for."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout / SPEED if timeout is not None else None)


class FastLoop(asyncio.SelectorEventLoop):
    """Sleeps and timeouts take a fiftieth of their time; sockets work as ever."""

    def __init__(self) -> None:
        super().__init__(_FastSelector())
        self._clock_resolution *= SPEED

    def time(self) -> float:
        return super().time() * SPEED


def run_fast(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run a coroutine function on a loop of its own whose clock runs fast."""
    return anyio.run(function, *arguments, backend_options={"loop_factory": FastLoop})
