"""When to ask whether an image is done: a pure object fed with what was seen, apart from the asking.

A look that comes too early is a request for nothing, one that comes late adds latency. The times at which
earlier images were done say where the looks belong: each is placed where a bit more than half of what is
left is expected to be done, so that an image takes 1 / 0.51 = 1.96 looks, whatever the latencies are. The
latency added is within a hair of the least that so many blind looks can add (benchmarks/polling.md). An API
that reports by itself when an image is done is not polled: ``follow_states`` in queued.py.
"""

from __future__ import annotations

import math
from statistics import NormalDist

SHARE = 0.51
"""The share of images still awaited that should be done at the next look; looks an image are its inverse."""

_MEMORY = 100
"""Images whose times count; older ones fade, so that the looks follow a vendor that changes its pace."""

_TOO_LATE = 0.85
"""The share of first looks that find the image done from which all looks must be too late."""

_UNIT = NormalDist()


class CompletionTimes:
    """A running lognormal fit of how long images take, from looks that saw them between two moments.

    A look says only that an image was done after one moment and by another. Each such sample counts as the
    mean and the spread that the fit so far expects between the two (expectation maximization, a sample at
    a time), so that looks that are always late do not pass for slow images.

    Args:
        typical_s: a first guess at the median, in seconds; it counts as much as some samples.
    """

    def __init__(self, typical_s: float) -> None:
        self._mean = math.log(max(typical_s, 0.001))
        self._variance = 0.4**2
        self._samples = 4
        self._at_once = SHARE

    def completed(self, after_s: float, by_s: float) -> None:
        """An image was not done ``after_s`` seconds after it was asked for, and was ``by_s`` after it."""
        after_s = min(max(after_s, 0.0), 1e6)
        mean, variance = self._expected(after_s, min(max(by_s, after_s * 1.001, 0.001), 2e6))
        self._at_once += 0.1 * ((after_s == 0.0) - self._at_once)
        if self._at_once > _TOO_LATE:
            # "Done by then" hardly says how much earlier: learn from few until looks come too early again.
            self._samples = min(self._samples, 10)
        self._samples = min(self._samples + 1, _MEMORY)
        rate = 1.0 / self._samples
        before = self._mean
        self._mean += rate * (mean - before)
        kept = self._variance + (before - self._mean) ** 2
        variance = (1 - rate) * kept + rate * (variance + (mean - self._mean) ** 2)
        self._variance = min(max(variance, 0.03**2), 1.5**2)

    def next_look(self, elapsed_s: float) -> float:
        """When to look, in seconds since the image was asked for, if it was not done at ``elapsed_s``."""
        spread = math.sqrt(self._variance)
        done = self._share_done(elapsed_s)
        at = math.inf
        if done < 0.9999:
            at = math.exp(self._mean + spread * _UNIT.inv_cdf(done + SHARE * (1 - done)))
        # Beyond all that was seen the steps grow with the time waited; and two looks are never one.
        return min(
            max(at, elapsed_s * 1.02 + 0.002), max(elapsed_s, math.exp(self._mean)) * 1.5, elapsed_s + 30
        )

    def _share_done(self, elapsed_s: float) -> float:
        if elapsed_s <= 0:
            return 0.0
        return _UNIT.cdf((math.log(elapsed_s) - self._mean) / math.sqrt(self._variance))

    def _expected(self, after_s: float, by_s: float) -> tuple[float, float]:
        """Mean and variance of the logarithm of a time between two, as the fit has it."""
        by = math.log(by_s)
        after = math.log(after_s) if after_s > 0 else -math.inf
        spread = math.sqrt(self._variance)
        low, high = (after - self._mean) / spread, (by - self._mean) / spread
        share = _UNIT.cdf(high) - _UNIT.cdf(low)
        if share < 1e-4:  # nothing the fit expects: take it as it was seen
            low_s = after_s if after_s > 0 else by_s * 0.7
            return math.log((low_s + by_s) / 2), (math.log(by_s / low_s)) ** 2 / 12 + 1e-4
        at_low = _UNIT.pdf(low) if after_s > 0 else 0.0
        shift = (at_low - _UNIT.pdf(high)) / share
        edges = ((low * at_low if after_s > 0 else 0.0) - high * _UNIT.pdf(high)) / share
        return self._mean + spread * shift, self._variance * max(1 + edges - shift**2, 1e-4)
