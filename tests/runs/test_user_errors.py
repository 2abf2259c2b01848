"""Errors that a user can cause are one sentence in Prefect's log and state; a bug keeps its traceback."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil

import pytest
from prefect import Task
from prefect.states import State

from imagemill import tasks
from imagemill.cli.options import OPTIONS
from imagemill.engine.engine import StopKind
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.runs.user_errors import one_sentence, without_secrets_in_errors
from imagemill.runs.wording import in_names_of_settings
from imagemill.secrets import keep_secret

NUMBERS = {name: 0 for name, field in RunSummary.model_fields.items() if field.is_required()}
NOTHING = dict.fromkeys(("p50_latency_s", "p95_latency_s", "manifest", "metrics", "report"))
SUMMARY = RunSummary(**NUMBERS | NOTHING | {"run_id": "o", "errors": {}, "stopped": "The budget is spent."})

UNSURE = {"unanswered": 1, "unanswered_usd": 0.01}


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
@pytest.mark.parametrize(
    ("error", "level", "keeps_traceback"),
    [
        (InputError("The catalog is empty."), logging.ERROR, False),
        (StoreUnavailableError("The bucket is away."), logging.ERROR, False),
        (RunStoppedError(SUMMARY, StopKind.OUT_OF_BUDGET), logging.WARNING, False),
        (ValueError("ours"), logging.ERROR, True),
    ],
    ids=["refused", "unavailable", "stopped", "bug"],
)
def test_the_log_of_a_run(
    name: str,
    error: Exception,
    level: int,
    keeps_traceback: bool,  # noqa: FBT001 - a parameter of the test
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])  # Prefect's own sends lines to its server
    logger.error("Engine execution exited with unexpected exception", exc_info=error)  # as Prefect does
    record = caplog.records[-1]
    assert record.levelno == level
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


def test_what_a_run_cost_and_may_have_cost_and_how_to_go_on() -> None:
    counts = {"unique": 5, "done": 3, "generated": 2, "reused": 1, "failed": 1, "pending": 1, "rejected": 2}
    summary = SUMMARY.model_copy(
        update={**counts, "cost_usd": 0.005, "unanswered": 1, "unanswered_usd": 0.01}
    )
    assert str(RunStoppedError(summary, StopKind.OUT_OF_BUDGET)) == (
        "Run o stopped early: The budget is spent; 3 of 5 images are done (2 generated, 1 reused), 1 failed,"
        " 1 is pending, 2 rows were rejected; it cost $0.005, and perhaps $0.01 more for 1 request without an"
        " answer; start it again with its id as execution.run_id to resume it."
    )
    changes = {"refreshed": True, "added": 1, "retired": 3, "pruned": 1}
    ended = summary.model_copy(update={"stopped": None, "pending": 0, **changes})
    assert str(ended) == (
        "Run o: 3 of 5 images are done (2 generated, 1 reused), 1 failed, 2 rows were rejected; 1 row added,"
        " 0 changed, 0 unchanged, 3 retired, 1 image pruned; it cost $0.005, and perhaps $0.01 more for 1"
        " request without an answer; failed.parquet and rejected.parquet have the reasons; retry-failed tries"
        " the failed ones again."
    )
    refused = ended.model_copy(update={"errors": {"bad_request": 1}})
    assert str(refused).endswith("; retry-failed skips what the API refused, unless permanent is set.")
    both = ended.model_copy(update={"errors": {"bad_request": 1, "timeout": 1}})
    assert str(both).endswith(
        "tries the failed ones again, but skips what the API refused unless permanent is set."
    )


def test_advice_for_the_command_names_the_settings_elsewhere() -> None:
    for option, _, group, name in OPTIONS:
        if group != "budget":  # a run's own width and height
            assert in_names_of_settings(f"Set {option}.") == f"Set {group}.{name}."
    said = "Resume it as it is with: imagemill resume owl-1, or give --column prompt=NAME."
    assert in_names_of_settings(said) == (
        "Resume it as it is with: execution.run_id owl-1 and execution.keep_plan, or give catalog.columns"
        ' {"prompt": "NAME"}.'
    )


def test_a_task_run_fails_without_a_secret_in_its_state() -> None:
    keep_secret("sk-live-1234567890")

    @without_secrets_in_errors
    def broken() -> None:
        raise KeyError("sk-live-1234567890")

    with pytest.raises(RuntimeError, match=r"KeyError: '\*\*\*'") as caught:
        broken()
    assert caught.value.__suppress_context__

    modules = [
        importlib.import_module(f"imagemill.tasks.{m.name}") for m in pkgutil.iter_modules(tasks.__path__)
    ]
    found = [task for module in modules for task in vars(module).values() if isinstance(task, Task)]
    assert len(found) >= 9
    for task in found:
        assert inspect.unwrap(task.fn) is not task.fn, f"{task.name} lacks the decorator"
