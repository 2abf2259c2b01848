"""What a queued API reports of a request on its way: waiting in the vendor's queue, being made, made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum

import anyio


class RequestState(StrEnum):
    """Where a request stands, as far as the vendor has reported."""

    SENT = "sent"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"


class RequestWatch:
    """Follows one request; awaited with its id once the API has accepted it.

    ``queued_s`` is the time in the vendor's queue so far, in seconds: from the id stored to the report that
    the image is being made. ``withdrawn``: cancelled while it waited, so that it costs nothing.
    """

    def __init__(self, accepted: Callable[..., Awaitable[None]]) -> None:
        self._accepted = accepted
        self._queued_at: float | None = None
        self.state = RequestState.SENT
        self.queued_s = 0.0
        self.withdrawn = False

    async def __call__(self, request_id: str, charged_usd: float | None = None, /) -> None:
        await self._accepted(request_id, charged_usd)

    def enter(self, state: RequestState, made_in_s: float) -> None:
        """The vendor reports another state.

        ``made_in_s``: how long the image took, where it was never reported to be in progress.
        """
        now = anyio.current_time()
        if self._queued_at is not None:
            waited_s = now - self._queued_at
            self.queued_s += max(0.0, waited_s - made_in_s) if state is RequestState.COMPLETED else waited_s
        self._queued_at = now if state is RequestState.QUEUED else None
        self.state = state

    @classmethod
    def of(cls, accepted: Callable[..., Awaitable[None]]) -> RequestWatch:
        """The engine's own watch, or one around a plain function."""
        return accepted if isinstance(accepted, RequestWatch) else cls(accepted)
