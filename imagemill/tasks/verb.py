"""A Prefect task as imagemill uses it: nothing cached, no result kept, no traceback for a user's mistake."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.summary import RunStoppedError

P = ParamSpec("P")
R = TypeVar("R")


def without_traceback(function: Callable[P, R]) -> Callable[P, R]:
    """Let an error that a user can cause become the state of a flow or task run, with its sentence.

    Prefect logs no traceback for a state that is returned. Whoever calls a flow gets the exception as it
    was; a task has to be called with ``return_state=True`` and asked for its ``result()``.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (InputError, StoreUnavailableError, RunStoppedError) as error:
            return cast("R", Failed(message=str(error), data=error))

    return run


def verb(name: str, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a Prefect task called ``name``; ``run_name`` tells its runs apart, where need be."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        made = task(name=name, task_run_name=run_name or name, cache_policy=NO_CACHE, persist_result=False)
        return cast("Task[P, R]", made(without_traceback(function)))

    return decorate
