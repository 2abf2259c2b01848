"""Why a run, or one of its routes, stopped before its end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StopKind(StrEnum):
    """Why a run stopped before its end; all of them can be resumed."""

    UNAUTHORIZED = "unauthorized"
    OUT_OF_BUDGET = "out_of_budget"
    UNAVAILABLE = "unavailable"
    SETUP = "setup"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop, and the sentence that says why."""

    kind: StopKind
    reason: str


STOP_WORDS = {
    StopKind.UNAUTHORIZED: "The API refused the key",
    StopKind.OUT_OF_BUDGET: "The account's credit is exhausted",
}
