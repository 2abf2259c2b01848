"""Ctrl-C and SIGTERM: the first stops a run cleanly, the second ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from imagemill.cli.terminal import stderr
from imagemill.runs.caller import Caller


@contextmanager
def interrupts_stop_the_run(caller: Caller) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop the run cleanly, or end it if nothing has been sent to the API yet.

    A second signal ends the process immediately.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        again = interrupted.is_set()
        interrupted.set()
        if again or not caller.interrupt("Interrupted."):
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        stderr.print("Stopping: requests in flight may finish; Ctrl-C again to leave them.", style="yellow")

    interrupted = threading.Event()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
