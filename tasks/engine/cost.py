"""Keeps the run's cost under its limit, counting what is in flight."""

from __future__ import annotations

import anyio


class BudgetSpentError(Exception):
    """No further image fits under the limit."""


class CostLimit:
    """Money spent, money promised to requests in flight, and the limit for both. In USD.

    ``doubtful`` is what may have been charged for requests that were never answered: it counts against
    the limit, since the limit must hold, but not as cost.
    """

    def __init__(self, limit_usd: float | None, spent_usd: float = 0.0, doubtful_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.promised_usd = 0.0
        self.doubtful_usd = doubtful_usd
        self._changed = anyio.Event()

    async def promise(self, price_usd: float, *, already_asked: bool = False) -> None:
        """Set the price of one image aside, waiting for requests in flight where it is close.

        Raises:
            BudgetSpentError: it does not fit, and nothing in flight will make room.
        """
        while not already_asked and not self._fits(price_usd):
            if self.promised_usd < 1e-9:
                raise BudgetSpentError
            await self._changed.wait()
        self.promised_usd += price_usd

    def settle(self, price_usd: float, *, charged: bool, doubtful: bool = False) -> None:
        """The request is over: it was charged, or not, or nobody knows."""
        self.promised_usd -= price_usd
        if charged:
            self.spent_usd += price_usd
        elif doubtful:
            self.doubtful_usd += price_usd
        self._changed.set()
        self._changed = anyio.Event()

    def _fits(self, price_usd: float) -> bool:
        if self.limit_usd is None:
            return True
        committed = self.spent_usd + self.promised_usd + self.doubtful_usd
        return committed + price_usd <= self.limit_usd + 1e-9
