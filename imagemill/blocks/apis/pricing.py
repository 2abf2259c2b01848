"""What an image costs: by the account's own price, the list price, or as the vendor reported it."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import PrivateAttr

from imagemill.blocks.apis.account import Account
from imagemill.blocks.apis.generated_image import Charge
from imagemill.jobs import CostSource, Job
from imagemill.usd import exact

_MOST_REPORTED = 5_000
"""Charges that are remembered; no more requests than that are ever on their way."""


class PricedAccount(Account):
    """An account that knows what it pays for an image."""

    _told_usd: dict[str, float] = PrivateAttr(default_factory=dict)

    def price(self, width: int, height: int, steps: int | None = None, params: str = "") -> Decimal | None:
        """What one image costs, in USD: the block's own price, or the list price; None where unknown."""
        if self.usd_per_image is not None:
            return exact(self.usd_per_image)
        if self.usd_per_megapixel is not None:
            return exact(Decimal(str(self.usd_per_megapixel)) * width * height / 1_000_000)
        known = self._published_price or self.profile.price
        return known.of(width, height, steps, params) if known else None

    @property
    def has_price_rule(self) -> bool:
        """Whether anything is known about the price."""
        own = (self.usd_per_image, self.usd_per_megapixel, self._published_price, self.profile.price)
        return any(rule is not None for rule in own)

    @property
    def price_in_words(self) -> str:
        """The price rule in a few words, and when and where it was noted, on a second line."""
        if self.usd_per_image is not None:
            return f"{exact(self.usd_per_image):f} USD per image, as you set it"
        if self.usd_per_megapixel is not None:
            return f"{exact(self.usd_per_megapixel):f} USD per megapixel, as you set it"
        known = self._published_price or self.profile.price
        if known is None:
            return "unknown"
        doubt = "" if known.confirmed else ", not confirmed"
        return f"{known}\n({known.source}; {known.noted}{doubt})"

    def price_usd(self, width: int, height: int, steps: int | None = None, params: str = "") -> float:
        """As :meth:`price`, as a float, and 0 where the price is unknown."""
        return float(self.price(width, height, steps, params) or 0)

    def charge(self, job: Job) -> Charge:
        """What the image just made for a job costs: as the API told with it, or else by its price."""
        reported = self._told_usd.get(job.key)
        return self.expected_charge(job) if reported is None else Charge(reported, CostSource.TOLD)

    def expected_charge(self, job: Job) -> Charge:
        """What an image for a job costs by its price, before the API said anything."""
        price = self.price(job.width, job.height, job.steps, job.params)
        return Charge(float(price or 0), CostSource.UNKNOWN if price is None else CostSource.LIST)

    def told_usd(self, headers: Mapping[str, str], answer: Mapping[str, Any], job: Job) -> float | None:
        """What an answer to a generation request says the image is charged at, in USD; None where nothing."""
        del headers, answer, job
        return None

    def _note_charge(self, job: Job, told_usd: float | None) -> None:
        """Keep what the API told of a job's latest image; of those that are long over nothing is kept."""
        self._told_usd.pop(job.key, None)
        if told_usd is not None:
            self._told_usd[job.key] = told_usd
        if len(self._told_usd) > _MOST_REPORTED:
            del self._told_usd[next(iter(self._told_usd))]
