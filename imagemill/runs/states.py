"""The state in which a flow run ends, by the run's outcome: automations fire on these names.

| outcome | type | name |
|---|---|---|
| every image is done, no row was rejected | COMPLETED | Completed |
| some images are done, others failed | COMPLETED | CompletedWithFailures |
| every image is done, but rows were rejected | COMPLETED | CompletedWithRejectedRows |
| no image is done: all failed, or all rows were rejected | FAILED | Failed |
| unusable input or settings | FAILED | Failed |
| stopped early, can be resumed | FAILED | Stopped |

A preview ends like a run of its pictures. Cancelled, Suspended and Crashed are Prefect's own. A few failures
leave the type COMPLETED: what waits for a run, and a parent flow, should go on. The data is the summary in
every case but unusable input, for ``run_deployment``.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed
from pydantic import PrivateAttr

from imagemill.runs.caller import at_a_terminal
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.runs.wording import in_names_of_settings

T = TypeVar("T")


class EndedState(State[Any]):
    """A final state that stores a value, such as the summary. The flow's caller gets it too, or the stop.

    Prefect would raise a ``TypeError`` for a failed state that holds no exception.
    """

    _value: Any = PrivateAttr()
    _stop: RunStoppedError | None = PrivateAttr(default=None)

    def result(self, raise_on_failure: bool = True, **_: object) -> Any:  # type: ignore[override] # noqa: ANN401, FBT001, FBT002
        """The value, whatever the state's type.

        Raises:
            RunStoppedError: the run stopped early.
        """
        if self._stop is None:
            return self._value
        if raise_on_failure:
            raise self._stop
        return self._stop


def completed(message: str, value: T) -> T:
    """What a flow returns to end as Completed with a message; its caller gets the value."""
    return cast("T", Completed(message=message, data=value))


def ended_state(summary: RunSummary) -> EndedState:
    """The state of a run that finished."""
    wanted = summary.unique or summary.rejected
    return outcome_state(
        str(summary),
        summary,
        nothing=bool(wanted) and not summary.done,
        failed=summary.failed,
        rejected=summary.rejected,
    )


def outcome_state(message: str, value: object, *, nothing: bool, failed: int, rejected: int) -> EndedState:
    """The state of what finished: with ``nothing`` usable, or so many failed images and rejected rows."""
    if nothing:
        kind, name = StateType.FAILED, "Failed"
    elif failed:
        kind, name = StateType.COMPLETED, "CompletedWithFailures"
    elif rejected:
        kind, name = StateType.COMPLETED, "CompletedWithRejectedRows"
    else:
        kind, name = StateType.COMPLETED, "Completed"
    return _state(kind, name, message, value)


def stopped_state(stop: RunStoppedError) -> EndedState:
    """The state of a run that stopped early and can be resumed."""
    state = _state(StateType.FAILED, "Stopped", str(stop), stop.summary)
    state._stop = stop  # noqa: SLF001 - its own
    return state


def _state(kind: StateType, name: str, message: str, value: object) -> EndedState:
    if not at_a_terminal():
        message = in_names_of_settings(message)
    state = EndedState(type=kind, name=name, message=message, data=value)
    state._value = value  # noqa: SLF001 - its own
    return state
