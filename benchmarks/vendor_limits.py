"""Tries the pacer on the limits that fal and Together document, over hundreds of seeds; prints tables.

    python -m benchmarks.vendor_limits [SEEDS] [fal|together]

In virtual time, through the real pacer. fal: everything is taken, so many images are made at once and the
rest waits; *used* is what the slots made from the first submit to the last image, compared with all images
submitted at the beginning. Together: the rate follows the past hour's use, and requests beyond the rate (429)
or the capacity (503) are refused; *delivered* is the share of what rate and capacity allow. SEEDS is 200: a
quarter of an hour of CPU time.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from imagemill.blocks.apis import Together
from imagemill.engine.limits.pacer import Pacer
from tests.engine.limits.hidden_account import Account, DynamicRate, Outcome, Step, loop_time, simulate
from tests.engine.limits.vendor_queue import VendorQueue, used_share

QUEUES = tuple((slots, latency_s, 1000) for slots in (2, 10, 40) for latency_s in (0.5, 3.0))
"""Slots, median latency in seconds, images."""

RATES = ((60, math.inf), (60, 0.5), (60, 2), (300, 2), (600, 5), (600, 8))
"""The base of the dynamic rate, in requests a minute, and the capacity, in requests a second."""


def queue_run(case: tuple[int, float, int], seed: int) -> tuple[float, int, int]:
    """What of the slots was used, the longest queue, and images made beyond those asked for."""
    slots, latency_s, images = case
    queue = VendorQueue(slots, latency_s, seed)
    return used_share(queue, images), queue.longest_queue, queue.made - images


def rate_run(case: tuple[float, float], seed: int) -> Outcome:
    """One run of 1,000 images before a rate that moves."""
    account = Account([Step(0)], seed, dynamic=DynamicRate(*case))
    return simulate(account, 1000, Pacer(None, first_per_s=Together.first_per_s, clock=loop_time))


def spread(values: Iterable[float], form: Callable[[float], str] = "{:.1%}".format) -> str:
    """Least, median and most, as cells of a table."""
    found = sorted(values)
    return " | ".join(form(value) for value in (found[0], statistics.median(found), found[-1]))


def main(seeds: int, vendors: Sequence[str]) -> None:
    """Run all, or one vendor's, and print the tables, row by row."""
    with ProcessPoolExecutor(2) as pool:
        if "together" in vendors:
            together(pool, seeds)
        if "fal" in vendors:
            fal(pool, seeds)


def together(pool: ProcessPoolExecutor, seeds: int) -> None:
    """The rates, one row each."""
    print(
        "| base a minute | capacity a second | runs | delivered: least | median | most"
        " | refused: least | median | most | jobs failed |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for base, capacity in RATES:
        runs = list(pool.map(rate_run, repeat((base, capacity)), range(seeds)))
        print(
            f"| {base} | {'any' if capacity == math.inf else capacity} | {seeds}"
            f" | {spread(run.delivered for run in runs)}"
            f" | {spread((run.refused_share for run in runs), '{:.2%}'.format)}"
            f" | {sum(run.failed for run in runs)} |",
            flush=True,
        )


def fal(pool: ProcessPoolExecutor, seeds: int) -> None:
    """The queues, one row each."""
    print(
        "\n| slots | latency s | images | runs | used: least | median | most | longest queue"
        " | made twice |\n|---|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for case in QUEUES:
        used, queues, twice = zip(*pool.map(queue_run, repeat(case), range(seeds)), strict=True)
        slots, latency_s, images = case
        print(
            f"| {slots} | {latency_s:g} | {images:,} | {seeds} | {spread(used)}"
            f" | {max(queues)} | {sum(twice)} |",
            flush=True,
        )


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:] if text.isdecimal()]
    names = [text for text in sys.argv[1:] if not text.isdecimal()]
    main(numbers[0] if numbers else 200, names or ("together", "fal"))
