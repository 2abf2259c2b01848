"""Amounts in USD, exact to a millionth of a millionth: sums that equal their rows, and no 26.999999999.

Prices and sums are reckoned in decimals or in whole units of ``PICO_USD``. What is stored and shown are the
floats nearest to them, which give the same whole units back up to some 1,000 USD for each amount.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal

PICO_USD = Decimal("1e-12")
"""The smallest part of a dollar that is kept."""

PICOS = 10**12
"""How many of them a dollar has."""


def exact(usd: Decimal | float | str) -> Decimal:
    """An amount, rounded to ``PICO_USD``: 0.1 is a tenth, whatever its binary fraction is."""
    amount = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return amount.quantize(PICO_USD, ROUND_HALF_EVEN).normalize() + 0


def in_words(usd: Decimal) -> str:
    """An amount with all its digits, as in "0.0027"."""
    return f"{exact(usd):f}"


def picos(usd: float) -> int:
    """An amount in whole units of ``PICO_USD``."""
    return round(usd * PICOS)


def of_picos(count: int) -> float:
    """The float nearest to so many units of ``PICO_USD``."""
    return count / PICOS


def plus(usd: float, more: float) -> float:
    """The sum of two amounts, as near as a float comes to it: 0.1 and 0.2 are 0.3."""
    return of_picos(picos(usd) + picos(more))


def price_of_tokens(tokens: tuple[int, int], usd_per_million: tuple[float, float]) -> float:
    """What a language model's tokens cost, in and out."""
    pairs = zip(tokens, usd_per_million, strict=True)
    return float(exact(sum((exact(usd) * count for count, usd in pairs), Decimal(0)) / 1_000_000))


def total(amounts: Iterable[float]) -> float:
    """The sum of amounts, whatever their order."""
    return of_picos(sum(map(picos, amounts)))
