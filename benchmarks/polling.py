"""What waiting for queued images costs: looks an image and latency added, against the exact optimum.

    python -m benchmarks.polling > benchmarks/polling.md

Images take lognormal times with a median of 0.8 s. The optimum knows the distribution, and is found by
dynamic programming over a grid of moments: the least latency that as many blind looks an image can add.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import NormalDist

from imagemill.blocks.apis.polling import CompletionTimes

MEDIAN_S = 0.8
IMAGES = 20_000
GRID = 1_500
SPREADS = (0.2, 0.25, 0.3, 0.35, 0.5)


def drawn(spread: float) -> list[float]:
    """Times that images take, in seconds."""
    draws = random.Random(1)
    return [MEDIAN_S * math.exp(spread * draws.gauss(0, 1)) for _ in range(IMAGES)]


def looked(
    times_s: list[float], next_look: Callable[[float], float], seen: Callable[[float, float], None]
) -> tuple[float, float]:
    """Looks an image, and the latency added as a share of the images' own time."""
    looks, added_s = 0, 0.0
    for time_s in times_s:
        before_s, look_s = 0.0, next_look(0.0)
        looks += 1
        while look_s < time_s:
            before_s, look_s = look_s, next_look(look_s)
            looks += 1
        seen(before_s, look_s)
        added_s += look_s - time_s
    return looks / len(times_s), added_s / sum(times_s)


def optimum(spread: float, looks: float) -> float:
    """The least share of latency that so many blind looks an image add on average."""
    cheap, dear = 1e-4, 10.0  # what a look is worth, in seconds: a dear one is taken seldom
    for _ in range(30):
        worth = math.sqrt(cheap * dear)
        taken, added_s = _best(spread, worth)
        cheap, dear = (worth, dear) if taken > looks else (cheap, worth)
    return added_s / (MEDIAN_S * math.exp(spread**2 / 2))


def _best(spread: float, worth_s: float) -> tuple[float, float]:
    """Looks and seconds added an image by the schedule that is cheapest if a look costs ``worth_s``."""
    unit = NormalDist(math.log(MEDIAN_S), spread)
    moments = [math.exp(unit.inv_cdf((i + 1) / (GRID + 1))) for i in range(GRID)]
    moments.append(math.exp(unit.mean + 5 * spread))  # by then all are done
    share = [(i + 1) / (GRID + 1) for i in range(GRID)] + [1.0]
    sums = [0.0]  # the time that images take that are done by a moment, summed over shares
    for i in range(GRID + 1):
        low, middle = (moments[i - 1], share[i] - share[i - 1]) if i else (moments[0], share[0])
        sums.append(sums[-1] + middle * (low + moments[i]) / 2)
    # best[i]: cost, looks and seconds from a look at moment i - 1 that found nothing on; 0 is the start.
    best = [(0.0, 0.0, 0.0)] * (GRID + 2)
    for i in range(GRID, -1, -1):
        done = share[i - 1] if i else 0.0
        best[i] = min(
            _step(best[j + 1], 1 - done, (share[j] - done) * moments[j] - (sums[j + 1] - sums[i]), worth_s)
            for j in range(i, GRID + 1, 1 if GRID - i < 50 else 5)
        )
    return best[0][1], best[0][2]


def _step(
    after: tuple[float, float, float], looks: float, waits_s: float, worth_s: float
) -> tuple[float, float, float]:
    return after[0] + worth_s * looks + waits_s, after[1] + looks, after[2] + waits_s


ABOUT = f"""# Waiting for queued images

`python -m benchmarks.polling > benchmarks/polling.md`

Lognormal times with a median of {MEDIAN_S:g} s and a spread (sigma of the logarithm), {IMAGES:,} images a
row. *Added*: from an image done to known to be done, as a share of its own time. *Least*: what so many blind
looks must add at the very least.

| spread | looks an image | added | least | one every 0.5 s | added |
|---:|---:|---:|---:|---:|---:|"""
CONCLUSION = """
Under two looks an image, nothing blind adds less than 15 % once the spread is above about 0.3. fal is not
looked at: it sends each state of a request as an event, so that an image takes one question and adds the
network's delay alone (`imagemill/blocks/apis/fal.py`, `told`).
Replicate and Black Forest Labs have no such stream."""


def main() -> None:
    """Print the table."""
    print(ABOUT)
    for spread in SPREADS:
        times = CompletionTimes(MEDIAN_S / 3)
        looks, added = looked(drawn(spread), times.next_look, times.completed)
        fixed, fixed_added = looked(drawn(spread), lambda at: at + 0.5, lambda *_: None)
        least = optimum(spread, looks)
        print(f"| {spread:g} | {looks:.2f} | {added:.1%} | {least:.1%} | {fixed:.2f} | {fixed_added:.1%} |")
    print(CONCLUSION)


if __name__ == "__main__":
    main()
