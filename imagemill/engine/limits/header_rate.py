"""The rate that an API's own headers imply, where what they say agrees with itself."""

from __future__ import annotations

import math

from imagemill.rate_limit_headers import Allowance

_FEWEST = 10
"""Answers that must agree before they are believed."""
_LONGEST_RESETS = 2.0
"""They must agree over twice the longest time to a whole allowance that they told of: a window that only
ends, whatever was sent, would have ended by then."""
_AGREED = 0.9
_SAME = 0.95


class ToldRate:
    """Bounds on a limit's rate, narrowed with each answer; a pure object.

    So many requests used of an allowance that is whole again in so many seconds: that bounds what flows back
    a second, and the bounds of many answers have one rate in common. Vendors who mean something else by their
    headers, such as the end of a fixed minute, soon contradict themselves and are not believed.
    """

    def __init__(self) -> None:
        self._low, self._high = 0.0, math.inf
        self._agreeing = 0
        self._since = self._longest_s = 0.0
        self._believed = math.inf

    def heard(self, allowance: Allowance, now: float) -> float | None:
        """Requests a second, where an answer has made up or changed what is believed; otherwise None."""
        used = allowance.limit - allowance.remaining  # requests left are rounded down, times either way
        low = (used - 1) / (allowance.reset_s + allowance.rounding_s)
        high = used / max(allowance.reset_s - allowance.rounding_s, 1e-6)
        if low > self._high or high < self._low:
            self._low, self._high, self._agreeing = low, high, 1
            self._since, self._longest_s = now, allowance.reset_s
            return None
        self._low, self._high = max(self._low, low), min(self._high, high)
        self._agreeing += 1
        self._longest_s = max(self._longest_s, allowance.reset_s)
        if self._agreeing < _FEWEST or self._low < _AGREED * self._high:
            return None
        if now - self._since < _LONGEST_RESETS * self._longest_s:
            return None
        per_s = (self._low + self._high) / 2
        if _SAME < per_s / self._believed < 1 / _SAME:
            return None
        self._believed = per_s
        return per_s
