"""Decides which pictures are measured, so that measuring takes a bounded share of the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

AUTO_SHARE = 0.1
"""Share of the process's CPU time."""


class Sampling:
    """Measures pictures within a ``share`` of the CPU time; all of them if it is 1.

    Args:
        cpu_s: CPU seconds of the process and of the calling thread.
    """

    def __init__(
        self,
        share: float = AUTO_SHARE,
        *,
        cpu_s: tuple[Callable[[], float], Callable[[], float]] = (time.process_time, time.thread_time),
    ) -> None:
        self._share = share
        self._process_s, self._thread_s = cpu_s
        self._began_s = self._process_s()
        self._spent_s = 0.0
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Whether there is CPU time for one more."""
        return self._spent_s <= self._share * (self._process_s() - self._began_s)

    def timed(self, measure: Callable[[], T]) -> T:
        """Call ``measure`` in this thread, and count its CPU time."""
        began_s = self._thread_s()
        try:
            return measure()
        finally:
            with self._lock:
                self._spent_s += self._thread_s() - began_s
