"""What images cost: the one price table. A block's own price, where it is set, goes before it.

List prices change, and none of these could be read on a bill here: those marked "not confirmed" come from
memory of the vendor's price page. Compare with your first bill, and set ``usd_per_image`` or
``usd_per_megapixel`` of the block where it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["image", "megapixel", "whole megapixel"]
"""What is counted: a megapixel is a million pixels, a whole one is rounded up."""


@dataclass(frozen=True, slots=True)
class Price:
    """A vendor's price: USD a unit, when it was noted, and where it is from."""

    usd: float
    unit: Unit
    noted: date
    source: str

    def of(self, width: int, height: int) -> float:
        """What one image of this size, in pixels, costs, in USD."""
        if self.unit == "image":
            return self.usd
        megapixels = width * height / 1e6
        return self.usd * (math.ceil(megapixels) if self.unit == "whole megapixel" else megapixels)


_NOTED = date(2026, 11, 25)

PRICES: Mapping[tuple[str, str], Price] = {
    ("together", ""): Price(
        0.0027, "megapixel", _NOTED, "together.ai/pricing, at the default 4 steps; not confirmed"
    ),
    ("fal", ""): Price(0.003, "whole megapixel", _NOTED, "fal.ai/models/fal-ai/flux/schnell"),
    ("replicate", ""): Price(0.003, "image", _NOTED, "replicate.com/black-forest-labs/flux-schnell"),
    ("bfl", ""): Price(0.025, "image", _NOTED, "docs.bfl.ai/quick_start/pricing, flux-dev; not confirmed"),
    ("bfl", "flux-pro-1.1"): Price(0.04, "image", _NOTED, "docs.bfl.ai/quick_start/pricing; not confirmed"),
    ("openai", ""): Price(
        0.003, "image", _NOTED, "what hosts of this model usually ask; the server's own is not known"
    ),
}
"""Prices by provider and model; the empty model stands for all that are not named."""


def list_price(provider: str, model: str) -> Price | None:
    """The price in the table; None for a provider that is not in it."""
    return PRICES.get((provider, model)) or PRICES.get((provider, ""))
