"""The notes that processes working on the same run exchange through the job store they share."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Note:
    """A process's latest note, and its age by the server's clock, in seconds."""

    owner: str
    age_s: float
    content: dict[str, Any]


class Board(ABC):
    """One note per process that works on a run, and the run's budget, in one shared place.

    Stores that several machines can reach are boards. Like a store's, its methods wait out an outage.
    """

    @abstractmethod
    async def exchange(self, owner: str, content: dict[str, Any] | None) -> list[Note]:
        """Replace a process's note, or remove it if ``content`` is None; the notes of all processes.

        ``content`` is plain JSON.
        """

    @abstractmethod
    async def clear_board(self) -> None:
        """Remove all notes."""

    @abstractmethod
    async def set_committed(self, usd: float) -> None:
        """Set what the run has spent or may have spent so far, in USD."""

    async def commit_usd(self, usd: float, limit_usd: float, *, token: str | None = None) -> bool:
        """Reserve USD for one process, atomically, if they fit within the run's limit.

        A negative amount returns a reservation, and always fits. The token makes it idempotent: where the
        answer was lost and the reservation is tried again, it is made once.
        """
        return await self._commit_usd(usd, limit_usd, token or uuid.uuid4().hex)

    @abstractmethod
    async def _commit_usd(self, usd: float, limit_usd: float, token: str) -> bool: ...
