"""The money of one job's request: promised before it leaves, then charged, doubtful, or free again."""

from __future__ import annotations

from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.recorder import Recorder
from imagemill.jobs import CostSource, Job


class Purchase:
    """What one job's request costs, from the promise to the bill. In USD.

    The promise stands as long as the API may still charge for the request: between two looks at a request
    that it keeps, too. What is charged is booked once, the moment it is known, whatever comes after.

    Args:
        expected: the cost limit counts the request already, as one that an earlier process sent.
        charged: it is booked already.
    """

    def __init__(
        self,
        job: Job,
        price_usd: float,
        cost: CostLimit,
        recorder: Recorder,
        *,
        expected: bool = False,
        charged: bool = False,
    ) -> None:
        self._job = job
        self._price_usd = price_usd
        self._cost = cost
        self._recorder = recorder
        self._expected = expected
        self._promised = False
        self._charged = charged
        self._share: CostLimit | None = None
        self._share_usd = 0.0
        self._is_in_share = expected and not charged

    @property
    def is_charged(self) -> bool:
        """Whether the API charged for the request, and that is booked."""
        return self._charged

    @property
    def is_expected(self) -> bool:
        """Whether it counts as sent by an earlier process, or before a pause, and nobody has asked yet."""
        return self._expected and not self._charged

    def move(self, price_usd: float, share: CostLimit | None = None) -> None:
        """The request goes to a route with this price; ``share`` is the route's part of the budget.

        The price is set aside of the share as well.
        """
        if self._promised:
            self._cost.settle(self._price_usd - price_usd)
        self._price_usd, self._share = price_usd, share
        if share is not None and self._promised and not self._share_usd:
            share.promise_asked(price_usd, expected=self._is_in_share)
            self._share_usd, self._is_in_share = price_usd, False

    def defer(self) -> None:
        """The request is asked about later in this run: until then it is expected to be charged."""
        if self._promised:
            share_usd = self._share_usd
            self._settle()
            self._cost.recover(expected_usd=self._price_usd)
            self._expected = True
            if self._share is not None and share_usd:
                self._share.recover(expected_usd=share_usd)
                self._is_in_share = True

    def free(self, share: CostLimit | None) -> None:
        """The expected request never arrived, and is not sent now; ``share`` is its route's part."""
        self._cost.recover(expected_usd=-self._price_usd)
        if share is not None and self._is_in_share:
            share.recover(expected_usd=-self._price_usd)
        self._expected = self._is_in_share = False

    async def promise(self) -> None:
        """Set the price aside; at once where the request is sent already, or paid.

        Raises:
            BudgetSpentError: it does not fit under the run's limit.
        """
        if self._promised or self._charged:
            return
        if self._job.request_id is None:
            await self._cost.promise(self._price_usd)
        else:
            self._cost.promise_asked(self._price_usd, expected=self._expected)
            self._expected = False
        self._promised = True

    def charge(self, usd: float, source: CostSource = CostSource.LIST) -> None:
        """The API charges this for the request; said once more, it changes nothing."""
        if self._charged:
            return
        self._charged = True
        self._job.pay(usd, source)
        self._recorder.charged(usd)
        self._settle(charged_usd=usd)

    def doubt(self) -> None:
        """The API may have charged for the request, and does not say."""
        if not self._charged:
            self._job.lose_answer(self._price_usd)
            self._settle(doubtful_usd=self._price_usd)

    def found(self, request_id: str, *, in_share: bool) -> None:
        """A request that was in doubt is found in the API's list; ``in_share``: in doubt at this route."""
        before_usd = self._job.unanswered_usd  # counted at the dearest price where it may have gone anywhere
        self._job.find_request(request_id, self._price_usd, listed=True)
        self._cost.settle(-self._price_usd, doubtful_usd=self._job.unanswered_usd - before_usd)
        self._promised = True
        if self._share is not None:
            self._share.settle(-self._price_usd, doubtful_usd=-self._price_usd if in_share else 0.0)
            self._share_usd = self._price_usd

    def end(self) -> None:
        """The request is over; a next one is a purchase of its own."""
        self._settle()
        self._charged = self._expected = self._is_in_share = False

    def leave(self) -> None:
        """The job stays pending: a request that the API keeps may be charged for until a resume asks."""
        self._settle(doubtful_usd=self._price_usd if self._job.request_id is not None else 0.0)

    def _settle(self, *, charged_usd: float = 0.0, doubtful_usd: float = 0.0) -> None:
        if self._promised or charged_usd:
            promised_usd = self._price_usd if self._promised else 0.0
            self._cost.settle(promised_usd, charged_usd=charged_usd, doubtful_usd=doubtful_usd)
            if self._share is not None:
                self._share.settle(self._share_usd, charged_usd=charged_usd, doubtful_usd=doubtful_usd)
                self._share_usd = 0.0
        self._promised = False
