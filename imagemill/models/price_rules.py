"""What an image costs: a vendor's price rule, exact to a millionth of a millionth of a dollar.

Prices are decimals, never binary fractions, so that a total is the sum of its rows. A block's own price,
where it is set, wins over the list price of its profile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Literal, TypeAlias

from imagemill.usd import exact, in_words

Unit: TypeAlias = Literal["image", "megapixel", "whole megapixel", "tile", "token"]
"""What is counted. A megapixel is a million pixels, except where it is rounded up to whole ones: there it is
1,048,576 pixels, so that 1024 x 1024 is one. A tile is 512 x 512 pixels."""

_PIXELS_OF_A_WHOLE = 1_048_576
_PIXELS_OF_A_TILE = 512 * 512
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Price:
    """A price rule: USD a unit, when it was noted, and where it is from.

    ``further_usd`` is the price of each whole megapixel after the first. With ``default_steps``, more steps
    than these cost more in proportion, and fewer cost no less. ``step_usd`` is added for each step. With
    ``tokens``, ``usd`` is the price of a million output tokens, and they say how many a picture of a quality
    and size has; ``text_usd`` and ``image_usd`` are the prices of a million tokens of input.
    """

    usd: Decimal
    unit: Unit
    noted: date
    source: str
    confirmed: bool = False
    further_usd: Decimal | None = None
    default_steps: int | None = None
    step_usd: Decimal = Decimal(0)
    text_usd: Decimal = Decimal(0)
    image_usd: Decimal = Decimal(0)
    tokens: Mapping[tuple[str, int, int], int] = field(default_factory=dict)

    def of(self, width: int, height: int, steps: int | None = None, params: str = "") -> Decimal | None:
        """What one image costs, in USD; None where that cannot be known before it is made.

        ``width`` and ``height`` are in pixels; ``params`` is a job's further fields, as JSON.
        """
        pixels = width * height
        if self.unit == "token":
            quality = json.loads(params).get("quality", "auto") if params else "auto"
            count = self.tokens.get((str(quality), width, height))
            return None if count is None else exact(self.usd * count / _MILLION)
        if self.unit == "image":
            amount = self.usd
        elif self.unit == "megapixel":
            amount = self.usd * pixels / _MILLION
        elif self.unit == "tile":
            amount = self.usd * -(-pixels // _PIXELS_OF_A_TILE)
        else:
            whole = -(-pixels // _PIXELS_OF_A_WHOLE)
            amount = self.usd + (self.usd if self.further_usd is None else self.further_usd) * (whole - 1)
        if self.default_steps and steps and steps > self.default_steps:
            amount = amount * steps / self.default_steps
        return exact(amount + self.step_usd * (steps or 0))

    def of_tokens(self, text: Decimal, image: Decimal, made: Decimal) -> Decimal | None:
        """What input tokens (text, image) and output tokens cost, in USD; None if not priced by token."""
        if self.unit != "token":
            return None
        return exact((text * self.text_usd + image * self.image_usd + made * self.usd) / _MILLION)

    @property
    def depends_on_steps(self) -> bool:
        """Whether the number of steps decides the price."""
        return self.default_steps is not None or bool(self.step_usd)

    def __str__(self) -> str:
        usd = in_words(self.usd)
        match self.unit:
            case "token":
                return f"{usd} USD per million output tokens, by quality and size"
            case "whole megapixel" if self.further_usd is not None:
                return f"{usd} USD for the first megapixel, {in_words(self.further_usd)} for each further one"
            case "whole megapixel":
                words = f"{usd} USD per megapixel, rounded up to whole ones"
            case "tile":
                words = f"{usd} USD per tile of 512 x 512 pixels"
            case unit:
                words = f"{usd} USD per {unit}"
        if self.step_usd:
            words += f" and {in_words(self.step_usd)} per step"
        if self.default_steps:
            words += f"; more than {self.default_steps} steps cost more in proportion"
        return words
