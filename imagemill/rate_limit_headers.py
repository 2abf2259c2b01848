"""What an answer says of the account's rate limit: when to ask again, and how much is left."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

_RESET_WORDS = re.compile(r"\b(?:resets?|again) in ~?(\d{1,6}(?:\.\d{1,3})?) ?(ms|s|m)", re.IGNORECASE)
_COUNT = re.compile(r"[0-9]{1,9}")
_DURATION = re.compile(
    r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,6}(?:\.\d{1,9})?)ms)?"
)
_LONGEST_RESET_S = 86_400.0
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
"""Units of time in seconds, in the order that _DURATION has them."""


class Allowance(NamedTuple):
    """What ``x-ratelimit-*`` headers say: requests allowed and left, and seconds until all are back.

    ``rounding_s`` is how far the vendor's rounding may have moved ``reset_s``.
    """

    limit: int
    remaining: int
    reset_s: float
    rounding_s: float


def allowance(headers: Mapping[str, str]) -> Allowance | None:
    """The allowance that the headers of an answer tell of; None where they tell of none, or it is whole.

    Read are ``x-ratelimit-limit``, ``-remaining`` and ``-reset``, also with OpenAI's ``-requests`` behind,
    the reset in seconds or as in ``6m0s``.
    """
    for suffix in ("", "-requests"):
        limit, remaining, reset = (
            headers.get(f"x-ratelimit-{name}{suffix}", "") for name in ("limit", "remaining", "reset")
        )
        reset = reset.strip().lower()
        parts = _DURATION.fullmatch(f"{reset}s" if reset[-1:].isdigit() else reset)
        if not parts or not (_COUNT.fullmatch(limit) and _COUNT.fullmatch(remaining)):
            continue
        said = [(text, unit) for unit, text in zip(_UNIT_S.values(), parts.groups(), strict=True) if text]
        reset_s = sum(float(text) * unit for text, unit in said)
        if not said or int(remaining) >= int(limit) or not 0 < reset_s < _LONGEST_RESET_S:
            continue
        text, unit = said[-1]
        rounding_s = unit * 0.1 ** len(text.partition(".")[2])
        return Allowance(int(limit), int(remaining), reset_s, rounding_s)
    return None


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks to wait, from 0 to one hour; None where there is none.

    Both forms of RFC 9110, 10.2.3 are read, seconds and an HTTP date, and the milliseconds of
    ``retry-after-ms`` that some vendors send. ``now`` is in Unix seconds.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        raw = headers.get(name, "").strip()
        if not raw:
            continue
        try:
            seconds = float(raw) * scale
        except ValueError:
            try:
                at = email.utils.parsedate_to_datetime(raw)
                seconds = at.timestamp() - (time.time() if now is None else now)
            except (ValueError, OverflowError, OSError):
                continue
        if seconds == seconds:  # not NaN
            return min(max(seconds, 0.0), 3600.0)
    return None


def seconds_in_words(words: str) -> float | None:
    """Seconds that an error's own words ask to wait, as in "resets in ~30s"; at most an hour."""
    found = _RESET_WORDS.search(words[:2000])
    return min(float(found[1]) * _UNIT_S[found[2].lower()], 3600.0) if found else None
