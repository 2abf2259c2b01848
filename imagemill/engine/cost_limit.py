"""Keeps the run's cost under its limit, counting what is in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from imagemill.formatting import money

_SET_ASIDE = 10
"""Images whose price one process of several sets aside at once."""

_NEAR = 100
"""Within so many images of the limit a process sets aside one at a time: what one keeps, another lacks."""


class BudgetSpentError(Exception):
    """No further image fits under the limit."""


class CostLimit:
    """Money spent, money promised to requests in flight, and the limit for both. In USD.

    ``doubtful`` is what may have been charged for requests that were never answered: it counts against
    the limit, since the limit must hold, but not as cost. ``expected`` is the price of requests that an
    earlier process sent and this one has yet to ask about.

    Prices are promised as listed or set. Once the API charges more for an image than was promised, all that
    may yet be charged counts as that much dearer. What is in flight before the first such charge was promised
    too little: only so much can the limit be exceeded by.

    Where several processes share the limit, each spends only what it has set aside by ``set_aside``. It takes
    an amount, and how much must still be free beyond it, and says whether that fits; a negative amount is
    given back.
    """

    def __init__(
        self,
        limit_usd: float | None,
        spent_usd: float = 0.0,
        doubtful_usd: float = 0.0,
        *,
        set_aside: Callable[[float, float], Awaitable[bool]] | None = None,
    ) -> None:
        self.limit_usd = limit_usd
        self._set_aside = set_aside if limit_usd is not None else None
        self._allowed_usd = 0.0 if self._set_aside else limit_usd
        self._asking = anyio.Lock()
        self._is_near = False
        self.spent_usd = spent_usd
        self.promised_usd = 0.0
        self.doubtful_usd = doubtful_usd
        self.expected_usd = 0.0
        self._dearer = 1.0
        self._stopped = False
        self._changed = anyio.Event()

    @property
    def sentence(self) -> str:
        """Why nothing more is bought, and what is spent; one process of several does not know that."""
        return f"The next image would exceed the limit of {self._amounts}: raise --max-cost to go on."

    @property
    def sentence_of_route(self) -> str:
        """The same of a route's part of the budget, which a resume takes as it was."""
        return (
            f"The next image would exceed the route's max_cost_usd of {self._amounts}: repeat the run's"
            " command with a higher one and its run id to go on."
        )

    @property
    def _amounts(self) -> str:
        spent = "" if self._set_aside else f"{money(self.spent_usd)} is spent"
        if spent and self.doubtful_usd > 1e-9:
            spent += f", and {money(self.doubtful_usd)} may have been charged for requests without an answer"
        return f"{money(self.limit_usd or 0.0)}{spent and f' ({spent})'}"

    @property
    def stopped(self) -> bool:
        """Whether nothing more will be sent."""
        return self._stopped

    @property
    def committed_usd(self) -> float:
        """All that is or may yet be charged."""
        return self.spent_usd + self._dearer * (self.promised_usd + self.doubtful_usd + self.expected_usd)

    async def promise(self, price_usd: float) -> None:
        """Set the price of one image aside, waiting for requests in flight where it is close.

        Raises:
            BudgetSpentError: it does not fit, and nothing in flight will make room.
        """
        while not self.fits(price_usd) and not await self._ask_for_more(price_usd):
            if self.promised_usd < 1e-9 or self._stopped:
                raise BudgetSpentError
            await self._changed.wait()
        self.promised_usd += price_usd

    def recover(
        self, *, spent_usd: float = 0.0, doubtful_usd: float = 0.0, expected_usd: float = 0.0
    ) -> None:
        """Count what an earlier process spent, or may have spent, and had already reserved.

        ``expected_usd`` is the price of requests that are yet to be asked about.
        """
        before_usd = self.committed_usd
        self.spent_usd += spent_usd
        self.doubtful_usd += doubtful_usd
        self.expected_usd += expected_usd
        if self._set_aside and self._allowed_usd is not None:
            self._allowed_usd += self.committed_usd - before_usd

    def promise_asked(self, price_usd: float, *, expected: bool) -> None:
        """Count a request that is sent already, over the limit or not: to ask about it costs nothing."""
        if expected:
            self.expected_usd -= price_usd
        elif self._set_aside and self._allowed_usd is not None:
            self._allowed_usd += price_usd  # whoever sent it has set its price aside
        self.promised_usd += price_usd

    def settle(self, promised_usd: float, *, charged_usd: float = 0.0, doubtful_usd: float = 0.0) -> None:
        """The request is over: it was charged, or not, or nobody knows."""
        if promised_usd > 0:
            self._dearer = max(self._dearer, charged_usd / promised_usd)
        self.promised_usd -= promised_usd
        self.spent_usd += charged_usd
        self.doubtful_usd += doubtful_usd
        self._notify()

    def stop(self) -> None:
        """Nothing more will be sent: whoever waits for room need not wait any more."""
        self._stopped = True
        self._notify()

    async def give_back(self) -> None:
        """What was set aside and is not spent is there for the others; who needs more sets it aside again."""
        if self._set_aside and self._allowed_usd is not None:
            async with self._asking:
                left = self._allowed_usd - self.committed_usd
                if left > 0:
                    self._allowed_usd -= left
                    await self._set_aside(-left, 0.0)

    async def _ask_for_more(self, price_usd: float) -> bool:
        if self._set_aside is None or self._allowed_usd is None:
            return False
        async with self._asking:
            while not self.fits(price_usd):  # it may, where somebody else has asked meanwhile
                image_usd = price_usd * self._dearer
                usd = _SET_ASIDE * image_usd
                self._is_near = self._is_near or not await self._set_aside(usd, _NEAR * image_usd)
                if self._is_near:
                    usd = image_usd
                    if not await self._set_aside(usd, 0.0):
                        return False
                self._allowed_usd += usd
        return True

    @property
    def is_exceeded(self) -> bool:
        """Whether all that is or may yet be charged exceeds the limit; one process of several cannot tell."""
        return self._set_aside is None and not self.fits(0.0)

    def fits(self, price_usd: float) -> bool:
        """Whether an image of this price fits as of now."""
        if self._allowed_usd is None:
            return True
        return self.committed_usd + price_usd * self._dearer <= self._allowed_usd + 1e-9

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
