"""Ctrl-C and SIGTERM: the first stops a run cleanly, the second waits for nothing, the third is the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imagemill.cli.terminal import stderr
from imagemill.engine.recorder import Progress
from imagemill.runs.caller import Caller

_AFTER_RUN = (
    "Interrupted. Finished images are kept. Go on with: imagemill resume RUN_ID (imagemill runs shows the id)"
)
_SAID = (
    "Stopping: requests in flight may finish; Ctrl-C again to leave them.",
    "Leaving the requests in flight; Ctrl-C again ends the process as it is.",
)


class InterruptedCaller(Caller):
    """A caller whose runs Ctrl-C and SIGTERM stop cleanly.

    A second one lets go of the requests in flight, so that the run ends at once, with its summary. A third
    ends the process, and so does the first while there is nothing to stop; a next one kills it.
    """

    def __init__(self, show: Callable[[Progress], None] | None = None) -> None:
        super().__init__(show)
        self._signals = 0
        self._is_saying = self._has_run = self._is_over = False

    @contextmanager
    def interrupting(self, stop: Callable[[str], None]) -> Iterator[None]:
        """Let signals call ``stop`` while the block runs, and Prefect take none of them."""
        self._has_run = True
        with super().interrupting(stop), self.signals():
            yield

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals while the block runs, unless one has ended the process."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if self._is_over else handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        is_first = self._signals == 1  # after it the run is ending, be it between two blocks
        if self._signals > len(_SAID) or (not self.interrupt("Interrupted.") and is_first):
            self._is_over = True
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt(_AFTER_RUN if self._has_run else "")
        if not self._is_saying:  # the terminal is not ours while the signal before is being answered
            self._is_saying = True
            stderr.print(_SAID[self._signals - 1], style="yellow")
            self._is_saying = False
