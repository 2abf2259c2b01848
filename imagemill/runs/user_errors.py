"""Shows errors that a user can cause as one message in Prefect, without a traceback."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from prefect.states import Failed

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.summary import RunStoppedError
from imagemill.secrets import without_secrets

P = ParamSpec("P")
R = TypeVar("R")

_USER_ERRORS = (InputError, StoreUnavailableError, RunStoppedError)


def one_sentence(flow: Callable[P, R]) -> Callable[P, R]:
    """Use the error's own message for the state of a failed flow run, and the error as its data.

    Otherwise Prefect puts "Flow run encountered an exception: InputError:" before it, and logs a traceback.
    The caller of the flow gets the error itself either way.
    """

    @functools.wraps(flow)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return flow(*args, **kwargs)
        except _USER_ERRORS as error:
            return cast("R", Failed(message=str(error), data=error))
        except Exception as error:
            if (shown := without_secrets(error)) is not error:
                raise shown from None  # Prefect keeps an exception's text with the run
            raise

    return run


class _OneSentence(logging.Filter):
    """Removes the traceback of such an error from a task run's log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, _USER_ERRORS):
            record.exc_info = record.exc_text = None
            record.msg, record.args = "%s", (str(error),)
        return True


def log_one_sentence() -> None:
    """Keep such tracebacks out of the logs of all task runs in this process. Can be called repeatedly."""
    logger = logging.getLogger("prefect.task_runs")
    if not any(isinstance(found, _OneSentence) for found in logger.filters):
        logger.addFilter(_OneSentence())
