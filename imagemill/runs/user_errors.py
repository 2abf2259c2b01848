"""Shows errors that a user can cause as one sentence in Prefect, without a traceback."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from prefect.states import Failed

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.caller import at_a_terminal
from imagemill.runs.states import stopped_state
from imagemill.runs.summary import RunStoppedError
from imagemill.runs.wording import in_names_of_settings
from imagemill.secrets import without_secrets

P = ParamSpec("P")
R = TypeVar("R")

_USER_ERRORS = (InputError, StoreUnavailableError, RunStoppedError)
_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def one_sentence(flow: Callable[P, R]) -> Callable[P, R]:
    """Use the error's own message for the state of a flow run that failed or stopped.

    Otherwise Prefect puts "Flow run encountered an exception: InputError:" before it, and logs a traceback.
    The caller of the flow gets the error itself either way.
    """
    flow = without_secrets_in_errors(flow)

    @functools.wraps(flow)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return flow(*args, **kwargs)
        except RunStoppedError as stop:
            return cast("R", stopped_state(stop))
        except (InputError, StoreUnavailableError) as error:
            readable = _readable(error)
            return cast("R", Failed(message=str(readable), data=readable))

    return run


def without_secrets_in_errors(step: Callable[P, R]) -> Callable[P, R]:
    """Mask the secrets in what a flow or task raises: Prefect keeps its text as the run's state."""

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except Exception as error:
            if (shown := without_secrets(error)) is not error:
                raise shown from None
            raise

    return run


def plain_advice(task: Callable[P, R]) -> Callable[P, R]:
    """Word a task's errors for their reader: with names of settings, or with the command's options."""

    @functools.wraps(task)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return task(*args, **kwargs)
        except InputError as error:
            if (readable := _readable(error)) is not error:
                raise readable from error
            raise

    return run


def _readable(error: InputError | StoreUnavailableError) -> InputError | StoreUnavailableError:
    words = str(error) if at_a_terminal() else in_names_of_settings(str(error))
    return error if words == str(error) else type(error)(words)


class _OneSentence(logging.Filter):
    """Logs such an error as one sentence, without a traceback; a stop, which can be resumed, as a warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, _USER_ERRORS):
            record.exc_info = record.exc_text = None
            record.msg, record.args = "%s", (str(error),)
            if isinstance(error, RunStoppedError):
                record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


def log_one_sentence() -> None:
    """Keep such tracebacks out of the logs of all runs in this process. Can be called repeatedly."""
    for logger in map(logging.getLogger, _LOGGERS):
        if not any(isinstance(found, _OneSentence) for found in logger.filters):
            logger.addFilter(_OneSentence())
