"""The program that calls a flow: it can show the progress of runs and interrupt them.

Prefect stores a flow's parameters, so a caller cannot be one of them: it is found through the context in
which the flow is called. A deployment, a worker and a plain ``generate_catalog(...)`` have no caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from imagemill.engine.recorder import Progress


class Caller:
    """What one program does with the runs it starts.

    Args:
        show: called with a run's progress about four times a second, on the run's event loop.
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
        """Stop all runs that can be stopped; False if there is none. Safe in a signal handler."""
        stops = self._stops
        for stop in stops:
            stop(reason)
        return bool(stops)


_caller: ContextVar[Caller | None] = ContextVar("imagemill_caller", default=None)


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    """Make this the caller of flows that are called in the block."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def current_caller() -> Caller:
    """The caller of the current flow."""
    return _caller.get() or Caller()


def at_a_terminal() -> bool:
    """Whether the command called the current flow: its user reads options, others read settings' names."""
    return _caller.get() is not None
