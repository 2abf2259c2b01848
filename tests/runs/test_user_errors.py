"""Errors that a user can cause are one sentence in Prefect's log and state; a bug keeps its traceback."""

from __future__ import annotations

import logging

import pytest
from prefect.states import State

from imagemill import tasks  # noqa: F401 - installs the filter
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.user_errors import one_sentence


@pytest.mark.parametrize(
    ("error", "keeps_traceback"),
    [
        (InputError("The catalog is empty."), False),
        (StoreUnavailableError("The bucket is away."), False),
        (ValueError("ours"), True),
    ],
)
def test_the_log_of_a_task_run(
    error: Exception,
    keeps_traceback: bool,  # noqa: FBT001 - a parameter of the test
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # Prefect's own sends lines to its server
    logger.error("Task run failed with exception: %r", error, exc_info=error)  # as Prefect's engine does
    record = caplog.records[-1]
    assert record.levelno == logging.ERROR
    assert (record.exc_info is not None) is keeps_traceback
    if not keeps_traceback:
        assert record.getMessage() == str(error)


def test_the_state_of_a_flow_run() -> None:
    @one_sentence
    def refused() -> None:
        raise InputError("The catalog is empty.")

    @one_sentence
    def broken() -> None:
        raise ValueError("ours")

    state = refused()  # type: ignore[func-returns-value]
    assert isinstance(state, State)
    assert state.is_failed()
    assert state.message == "The catalog is empty."
    assert isinstance(state.data, InputError)
    with pytest.raises(ValueError, match="ours"):
        broken()
