"""Ctrl-C, SIGTERM, SIGHUP: the first stops a run cleanly, the second at once, the third is the end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from imagemill.cli.terminal import stderr
from imagemill.engine.recorder import Progress
from imagemill.formatting import money
from imagemill.runs.caller import Caller

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = (
    "Stopping: requests in flight may finish; Ctrl-C again to leave them.",
    "Leaving the requests in flight; Ctrl-C again ends the process as it is.",
)


class InterruptedCaller(Caller):
    """A caller whose runs Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) stop cleanly.

    A second one lets go of the requests in flight, so that the run ends at once, with its summary. A third
    ends the process, and so does the first while there is nothing to stop; a next one kills it. SIGHUP
    counts only as the first: shell and kernel both send it, and nobody is there to be impatient. ``again``
    has the options with which a resume goes on.
    """

    def __init__(self, show: Callable[[Progress], None] | None = None, again: Sequence[str] = ()) -> None:
        super().__init__(self._keep)
        self._again = again
        self._shown = show
        self._progress: Progress | None = None
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
        before = {
            number: signal.signal(number, self._stop)
            for number in _SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if self._is_over else handler)

    def _keep(self, progress: Progress) -> None:
        self._progress = progress
        if self._shown is not None:
            self._shown(progress)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._signals:
            return
        self._signals += 1
        is_first = self._signals == 1  # after it the run is ending, be it between two blocks
        if self._signals > len(_SAID) or (not self.interrupt("Interrupted.") and is_first):
            self._is_over = True
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt(self._after_run if self._has_run else "")
        if not self._is_saying:  # the terminal is not ours while the signal before is being answered
            self._is_saying = True
            stderr.print(_SAID[self._signals - 1], style="yellow")
            self._is_saying = False

    @property
    def _after_run(self) -> str:
        if self._progress is None:
            return "Interrupted. Finished images are kept. imagemill runs shows how to go on."
        resume = " ".join(["imagemill resume", self._progress.run_id, *self._again])
        return (
            f"Interrupted. Finished images are kept: {money(self._progress.cost_usd)} so far; requests in"
            f" flight may be charged, too. Go on with: {resume}"
        )
