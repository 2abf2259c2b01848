"""When an answer says to try again: Retry-After in all its forms, or in words."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

_RESET_WORDS = re.compile(r"\b(?:resets?|again) in ~?(\d{1,6}(?:\.\d{1,3})?) ?(ms|s|m)", re.IGNORECASE)
_UNIT_S = {"m": 60.0, "s": 1.0, "ms": 0.001}


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
