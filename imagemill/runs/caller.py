"""The program that calls a flow: it may show the progress of runs, and it may interrupt them.

A flow's parameters are data that Prefect stores, so a caller reaches the run through the context that the
flow is called in. A deployment, a worker and a plain ``generate_catalog(...)`` have none, and need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from imagemill.engine.recorder import Progress


class Caller:
    """What one program does with the runs it starts.

    Args:
        show: is called with a run's progress about four times a second, on the run's event loop.
    """

    def __init__(self, show: Callable[[Progress], None] | None = None) -> None:
        self.show = show
        self._stops: tuple[Callable[[str], None], ...] = ()

    @contextmanager
    def interrupting(self, stop: Callable[[str], None]) -> Iterator[None]:
        """Let :meth:`interrupt` call ``stop`` with its reason while the block runs."""
        before = self._stops
        self._stops = (*before, stop)
        try:
            yield
        finally:
            self._stops = before

    def interrupt(self, reason: str) -> bool:
        """Stop the runs that can be stopped resumably; False where none can. Safe in a signal handler."""
        stops = self._stops
        for stop in stops:
            stop(reason)
        return bool(stops)


_caller: ContextVar[Caller | None] = ContextVar("imagemill_caller", default=None)


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    """Flows that are called in the block are this caller's."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def current_caller() -> Caller:
    """Whoever called the flow that runs here."""
    return _caller.get() or Caller()
