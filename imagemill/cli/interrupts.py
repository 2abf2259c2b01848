"""Ctrl-C and SIGTERM: the first stops a run cleanly, the second ends the process."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imagemill.cli.terminal import stderr
from imagemill.engine.recorder import Progress
from imagemill.runs.caller import Caller

_AFTER_RUN = "Interrupted. Finished images are kept. Run the same command again."


class InterruptedCaller(Caller):
    """A caller whose runs Ctrl-C and SIGTERM stop cleanly.

    A second signal ends the process immediately, and so does the first while there is nothing to stop.
    """

    def __init__(self, show: Callable[[Progress], None] | None = None) -> None:
        super().__init__(show)
        self._interrupted = self._has_run = False

    @contextmanager
    def interrupting(self, stop: Callable[[str], None]) -> Iterator[None]:
        """Let signals call ``stop`` while the block runs, and Prefect take none of them."""
        self._has_run = True
        with super().interrupting(stop), self.signals():
            yield

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals while the block runs."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        again, self._interrupted = self._interrupted, True
        if again or not self.interrupt("Interrupted."):
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt(_AFTER_RUN if self._has_run else "")
        stderr.print("Stopping: requests in flight may finish; Ctrl-C again to leave them.", style="yellow")
