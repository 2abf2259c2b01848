"""How numbers of things, money, shares, rates and times are worded, everywhere that a person reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def cut(text: str, length: int = 300) -> str:
    """Text on one line, its end cut off where it is too long."""
    line = " ".join(text[: 4 * length].split())
    if len(line) <= length and len(text) <= 4 * length:
        return line
    return line[:length].rstrip() + "\u2026"


def counted(number: int, one: str, many: str) -> str:
    """A number and what it counts, as in 1 image or 2,000 images."""
    return f"{number:,} {one if number == 1 else many}"


def utc(moment: datetime) -> datetime:
    """A moment in UTC; one without a time zone is in UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def money(usd: float) -> str:
    """A sum: cents, and below ten of them as many digits as it takes."""
    return f"${usd:,.2f}" if abs(usd) >= 0.1 else price(usd)


def price(usd: float) -> str:
    """The price of one image: cents, or below a dollar up to three significant digits."""
    if abs(usd) >= 1 or not usd:
        return f"${usd:,.2f}"
    whole, _, digits = f"{usd:.{2 - math.floor(math.log10(abs(usd)))}f}".partition(".")
    return f"${whole}.{digits.rstrip('0').ljust(2, '0')}"


def percent(share: float) -> str:
    """A share from 0 to 1."""
    if 0 < share < 0.0001:
        return "<0.01%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    if share < 0.1:
        return f"{100 * share:.{2 if share < 0.01 else 3}g}%"
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def rate(value: float) -> str:
    """A number of something per something."""
    decimals = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def seconds(value: float | None) -> str:
    """A latency."""
    if value is None:
        return "\u2013"
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} s"


def duration(value: float) -> str:
    """A span of time in seconds, in the two units that matter."""
    if value < 60:
        return f"{value:.0f} s" if value >= 10 or value == int(value) else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"
