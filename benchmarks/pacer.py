"""Tries the pacer on hidden limits of many kinds, in virtual time; prints a Markdown table.

    python -m benchmarks.pacer [SEEDS]

Each scenario is a run of 10,000 images through the real pacer, by workers that follow the engine's retry
table, before an account whose limit the pacer is not told; SEEDS (8) of them for each line. Latency is
lognormal with a median of 0.5 s and a sigma of 0.35; a 429 takes 10 to 60 ms and says nothing more, but
where Retry-After is named. ``delivered`` is the share of what the limit allows from the first request to the
last image. A run has settled, and follows a changed limit, once the next ten seconds bring 90 % of what is
allowed, with few 429s. ``vendor_limits`` has the limits that fal and Together document.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from imagemill.engine.limits.pacer import Pacer
from tests.engine.limits.hidden_account import Account, Outcome, Step, simulate
from tests.virtual_time import run

Maker = Callable[[random.Random, int], Account]


def _cap(rng: random.Random, seed: int, **more: float) -> Account:
    return Account([Step(0, rng.randint(20, 50))], seed, **more)


def _small_cap(rng: random.Random, seed: int) -> Account:
    return Account([Step(0, rng.randint(3, 10))], seed)


def _rate(burst: int | None = None, **more: float) -> Maker:
    def make(rng: random.Random, seed: int) -> Account:
        return Account([Step(0, None, rng.uniform(300, 3000), burst or rng.randint(2, 10))], seed, **more)

    return make


def _both(rng: random.Random, seed: int) -> Account:
    return Account([Step(0, rng.randint(20, 50), rng.uniform(300, 3000), rng.randint(2, 10))], seed)


def _cap_step(factor: float) -> Maker:
    def make(rng: random.Random, seed: int) -> Account:
        low = rng.randint(20, 25)
        first = low if factor > 1 else 2 * low
        return Account([Step(0, first), Step(50, round(first * factor))], seed)

    return make


def _rate_step(factor: float, burst: int | None = None, **more: float) -> Maker:
    def make(rng: random.Random, seed: int) -> Account:
        low, room = rng.uniform(300, 1500), burst or rng.randint(2, 10)
        first = low if factor > 1 else 2 * low
        return Account([Step(0, None, first, room), Step(90, None, first * factor, room)], seed, **more)

    return make


KINDS: dict[str, Maker] = {
    "20 to 50 at once": _cap,
    "the same, 2 % of 500s": lambda rng, seed: _cap(rng, seed, errors=0.02),
    "the same, latency doubles with load": lambda rng, seed: _cap(rng, seed, load=1.0),
    "the same, 5 ms on the way": lambda rng, seed: _cap(rng, seed, transit_s=0.005),
    "the same, 10 % refused at any pace": lambda rng, seed: _cap(rng, seed, busy=0.1),
    "3 to 10 at once": _small_cap,
    "300 to 3,000 a minute, bucket 2 to 10": _rate(),
    "the same, Retry-After": _rate(retry_after=True),
    "the same, 5 ms on the way ": _rate(transit_s=0.005),
    "300 to 3,000 a minute, bucket 1": _rate(1),
    "the same, Retry-After ": _rate(1, retry_after=True),
    "both, bucket 2 to 10": _both,
    "at once, halved": _cap_step(0.5),
    "at once, doubled": _cap_step(2.0),
    "a minute, halved": _rate_step(0.5),
    "a minute, doubled": _rate_step(2.0),
    "a minute, halved, bucket 1": _rate_step(0.5, 1),
    "a minute, doubled, bucket 1": _rate_step(2.0, 1),
}


def _one(task: tuple[str, int]) -> Outcome:
    kind, seed = task
    account = KINDS[kind](random.Random(f"{kind} {seed}"), seed)
    return simulate(account)


def _cost() -> str:
    """Microseconds for an acquire and its release."""
    images = 100_000

    async def loop(pacer: Pacer) -> float:
        began = time.perf_counter()
        for _ in range(images):
            slot = await pacer.acquire()
            slot.served = True
            pacer.release(slot)
        return 1e6 * (time.perf_counter() - began) / images

    return f"{run(loop, Pacer(25)):.1f} µs at a fixed number, {run(loop, Pacer(None)):.1f} µs with `auto`"


def _short(task: tuple[int, int, int]) -> list[tuple[float, float]]:
    """Delivered and refused shares of a short run: told the limit, known from a run before, and new."""
    images, cap, seed = task
    before = Pacer(None)
    simulate(Account([Step(0, cap)], seed + 1_000), images, before)
    pacers = (Pacer(cap), Pacer(None, known=before.learned()), Pacer(None))
    found = [simulate(Account([Step(0, cap)], seed), images, pacer) for pacer in pacers]
    return [(each.delivered, each.refused_share) for each in found]


def _short_runs(seeds: int) -> None:
    """Print what start and end cost a short run, whose client was told the limit, knows it or finds it."""
    print("\n| images | requests at once | told | known from a run before | 429s | new | 429s |")
    print("|---|" + "---|" * 6, flush=True)
    for images in (1_000, 2_000):
        for cap in (10, 20, 30, 50):
            with ProcessPoolExecutor(2) as pool:
                group = list(pool.map(_short, [(images, cap, seed) for seed in range(2 * seeds)]))
            told, known, new = (
                [statistics.median(each[way][part] for each in group) for part in (0, 1)] for way in range(3)
            )
            shares = f"{known[0]:.1%} | {known[1]:.2%} | {new[0]:.1%} | {new[1]:.2%}"
            print(f"| {images:,} | {cap} | {told[0]:.1%} | {shares} |", flush=True)


def main(seeds: int) -> None:
    """Run every scenario and print the tables."""
    print(
        "| hidden limit | runs | delivered: least | median | 429s: most | median | settled s: most | median"
        " | followed s: most | median | jobs failed by 429s |"
    )
    print("|---|" + "---|" * 10, flush=True)
    for kind in KINDS:
        with ProcessPoolExecutor(2) as pool:
            group = list(pool.map(_one, [(kind, seed) for seed in range(seeds)]))
        delivered = [found.delivered for found in group]
        refused = [found.refused_share for found in group]
        settled = [found.settled_s for found in group]
        followed = [found.followed_s for found in group if found.followed_s is not None]
        follow = f"{max(followed):.1f} | {statistics.median(followed):.1f}" if followed else "- | -"
        print(
            f"| {kind.strip()} | {len(group)} | {min(delivered):.1%} | {statistics.median(delivered):.1%}"
            f" | {max(refused):.2%} | {statistics.median(refused):.2%}"
            f" | {max(settled):.1f} | {statistics.median(settled):.1f} | {follow}"
            f" | {sum(found.failed_by_429 for found in group)} |",
            flush=True,
        )
    _short_runs(seeds)
    print(f"\nAn acquire and its release, in virtual time: {_cost()}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
