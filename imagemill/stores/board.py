"""What processes that work on one run together tell each other, through the job store that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Note:
    """What one process last said, and how long ago by the server's clock, in seconds."""

    owner: str
    age_s: float
    content: dict[str, Any]


class Board(ABC):
    """A place for a note of each process that works on a run, and the run's budget, held in one place.

    A store that several machines reach is one. Its methods are patient, as those of a store are.
    """

    @abstractmethod
    async def exchange(self, owner: str, content: dict[str, Any] | None) -> list[Note]:
        """Put up a process's note in place of its last one, or with None take it down; all that hang there.

        ``content`` is plain JSON.
        """

    @abstractmethod
    async def clear_board(self) -> None:
        """Take down the notes of everybody."""

    @abstractmethod
    async def set_committed(self, usd: float) -> None:
        """Say what the run has spent or may have spent so far, in USD."""

    @abstractmethod
    async def commit_usd(self, usd: float, limit_usd: float) -> bool:
        """Set so many USD aside for one process, if they fit under the run's limit; one step.

        A negative amount is given back, and always fits.
        """
