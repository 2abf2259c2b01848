"""Runs over three emulated accounts with different hidden limits, prices and latencies; prints a table.

    python -m benchmarks.routes [IMAGES]

In virtual time, through the real engine and the emulator. *allowed* is the sum of what the accounts' limits
allow, *optimum* what the images cost if the cheaper accounts are used to the full until the deadline. *Limits
known* is a second run, which starts from the limits that the first found. IMAGES is 12,000.
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from imagemill.blocks.apis import Fal, Together
from imagemill.engine.limits.pacer import Limit
from tests.engine.accounts import Account, Ended, jobs_of, run_over
from tests.virtual_time import run

_SIGMA = 0.2
_TRANSIT_S = 0.01

LIMITS = {"cheap": (8, 1.0, 0.001), "quick": (12, 0.5, 0.002), "queue": (10, 0.8, 0.004)}
"""Concurrent requests, median latency in seconds, and USD per image of each account."""


def accounts(known: Mapping[str, Limit] = {}) -> dict[str, Account]:
    """Three accounts, of which one queues what the others refuse; ``known`` are limits of an earlier run."""
    found = {}
    for name, (most, latency_s, usd) in LIMITS.items():
        kind = Fal if name == "queue" else Together
        api = kind(api_key=f"benchmark-{name}", base_url=f"http://{name}.test", usd_per_image=usd)
        found[name] = Account(api, max_concurrent=most, latency_s=latency_s, latency_sigma=_SIGMA)
        found[name].known = known.get(name)
    return found


def per_s(name: str) -> float:
    """Images per second that an account allows."""
    most, latency_s, _ = LIMITS[name]
    return most / (latency_s * math.exp(_SIGMA**2 / 2) + _TRANSIT_S)


def optimum_usd(images: int, seconds: float) -> float:
    """What so many images cost at least within so many seconds."""
    usd, left = 0.0, float(images)
    for name in sorted(LIMITS, key=lambda name: LIMITS[name][2]):
        made = min(left, per_s(name) * seconds)
        usd, left = usd + made * LIMITS[name][2], left - made
    return usd


def one(over: Mapping[str, Account], images: int, **given: Any) -> Ended:  # noqa: ANN401 - as run_over takes them
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        return run(lambda: run_over(Path(folder), over, jobs_of(images), **given))


def row(case: str, over: Mapping[str, Account], ended: Ended, result: str) -> None:
    """Print a line of the table."""
    charged = Counter(prompt for account in over.values() for _, prompt in account.charged)
    twice = sum(count - 1 for count in charged.values())
    made = ", ".join(f"{name} {count:,}" for name, count in sorted(ended.made_by.items()))
    print(
        f"| {case} | {ended.statuses['done']:,} | {made} | {ended.seconds:,.0f} |"
        f" {ended.cost.spent_usd:.2f} | {result} | {len(ended.jobs) - ended.statuses['done']} | {twice} |",
        flush=True,
    )


def trouble(account: Account, at_s: float, **changes: object) -> Callable[[], Awaitable[None]]:
    """What happens to an account after so long; ``back_s``: and that it ends after so long."""
    back_s = changes.pop("back_s", None)

    async def happens() -> None:
        await anyio.sleep(at_s)
        before = {name: getattr(account, name) for name in changes}
        for name, value in changes.items():
            setattr(account, name, value)
        if isinstance(back_s, float):
            await anyio.sleep(back_s)
            for name, value in before.items():
                setattr(account, name, value)

    return happens


def main(images: int) -> None:
    """Run each policy, and print the table."""
    logging.getLogger("imagemill.jobs").setLevel(logging.CRITICAL)
    print("| run | done | made by | seconds | USD | result | not done | paid twice |")
    print("|---|---|---|---|---|---|---|---|")
    allowed = sum(map(per_s, LIMITS))
    over = accounts()
    ended = one(over, images)
    row("`fastest`", over, ended, f"{images / ended.seconds / allowed:.1%} of allowed")
    known = ended.learned
    over = accounts(known)
    ended = one(over, images)
    row("`fastest`, limits known", over, ended, f"{images / ended.seconds / allowed:.1%} of allowed")
    over = accounts()
    ended = one(over, images // 4, policy="cheapest")
    row("`cheapest`", over, ended, f"{ended.cost.spent_usd / (images // 4 * 0.001):.1%} of optimum")
    for count, share, limits in (
        (images, 0.5, {}), (images, 0.8, {}), (images, 0.8, known), (images * 5 // 3, 0.8, {}),
    ):  # fmt: skip
        seconds = count / (share * allowed)
        over = accounts(limits)
        ended = one(over, count, policy="cheapest", hours=seconds / 3600)
        best = optimum_usd(count, seconds)
        late = "" if ended.seconds <= seconds else f", {ended.seconds - seconds:.0f} s late"
        result = f"{ended.cost.spent_usd / best:.1%} of optimum{late}"
        row(f"`cheapest`, deadline {seconds:,.0f} s{', limits known' if limits else ''}", over, ended, result)
    for name, changes in {
        "dies for 60 s": {"down": True, "back_s": 60.0},
        "has no credit": {"refuses": 402},
        "is refused": {"refuses": 401},
    }.items():
        for first in ("quick", "queue"):
            found = accounts()
            over = {first: found.pop(first), **found}
            count = images // 6
            at_s = min(30.0, count / per_s(first) / 2)  # before it has made them all
            ended = one(over, count, policy="failover", meanwhile=trouble(over[first], at_s, **changes))
            row(f"`failover`, {first} {name} after {at_s:.0f} s", over, ended, "")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12_000)
