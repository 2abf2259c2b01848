"""Fuzzes everything that reads untrusted bytes: pictures, answers, catalogs, logs, checkpoints.

    python -m benchmarks.fuzz MINUTES > benchmarks/fuzz.md
    python -m benchmarks.fuzz --replay TARGET SEED

One seed makes each case, and replays it. Targets take turns in processes of their own, half a minute each.
Findings are exceptions that are not typed errors, and processes that die, hang or grow. The targets are those
of tests/fuzz.
"""

from __future__ import annotations

import collections
import json
import random
import resource
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.fuzz.answers import ANSWERS
from tests.fuzz.files import FILES

TARGETS = FILES | ANSWERS
TURN_S = 30.0
HANG_S = 120.0
MOST_BYTES = 3 * 2**30
"""What a process may take up at most; a case that needs more fails."""


def _turn(name: str, first: int, seconds: float) -> dict[str, Any]:
    """Cases of one target from a seed on: how many, what came of them, what was found, and the memory."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    target, outcomes, found = TARGETS[name], collections.Counter[str](), {}
    begun, seed, slowest_s, before = time.monotonic(), first, 0.0, 0
    while time.monotonic() - begun < seconds:
        at = time.monotonic()
        try:
            outcomes[target(random.Random(seed))] += 1
        except Exception as error:  # noqa: BLE001 - whatever comes out is a finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            found.setdefault(what, seed)
        if seed == first:
            before = _peak()  # with all that is loaded at the first use
        else:
            slowest_s = max(slowest_s, time.monotonic() - at)
        seed += 1
    grown = (_peak() - before) // 1024
    return {"cases": seed - first, "outcomes": outcomes, "found": found, "mb": grown, "slowest_s": slowest_s}


def _peak() -> int:
    """The most memory that this process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _nothing() -> dict[str, Any]:
    return {"cases": 0, "outcomes": collections.Counter[str](), "found": {}, "mb": 0, "slowest_s": 0.0}


def _in_a_process(name: str, first: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--turn", name, str(first)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TURN_S + HANG_S, check=False)
    except subprocess.TimeoutExpired:
        return _nothing() | {"found": {"a case that does not end": first}}
    if done.returncode:
        words = f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
        return _nothing() | {"found": {words: first}}
    turn: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return turn


def main(minutes: float) -> int:
    """Fuzz for so many minutes and print the table; 1 where anything was found."""
    begun, turns = time.monotonic(), 0
    totals = {name: _nothing() for name in TARGETS}
    while time.monotonic() - begun < 60 * minutes:
        name = list(TARGETS)[turns % len(TARGETS)]
        turn, total = _in_a_process(name, 1_000_000 * (turns + 1)), totals[name]
        total["cases"] += turn["cases"]
        total["outcomes"].update(turn["outcomes"])
        total["found"] = {**turn["found"], **total["found"]}
        total["mb"] = max(total["mb"], turn["mb"])
        total["slowest_s"] = max(total["slowest_s"], turn["slowest_s"])
        turns += 1
        words = f"{name}: {turn['cases']} cases, {turn['found'] or 'nothing found'}"
        print(words, file=sys.stderr, flush=True)
    print(_report(totals, (time.monotonic() - begun) / 60))
    return int(any(total["found"] for total in totals.values()))


def _report(totals: dict[str, Any], minutes: float) -> str:
    cases = sum(total["cases"] for total in totals.values())
    lines = [
        "# Hostile bytes",
        "",
        "`python -m benchmarks.fuzz MINUTES > benchmarks/fuzz.md`",
        "",
        f"{cases:,} cases in {minutes:.0f} minutes, one process at a time. Each damages something",
        "well-formed, the bytes of a file or the values of an answer, and gives it to the code that",
        "reads it. *Found*: exceptions that are not typed errors. *Grew*: the most memory that a",
        "process gained in half a minute of cases.",
        "",
        "| target | cases | most frequent outcomes | found | slowest case | grew |",
        "|---|---:|---|---|---:|---:|",
    ]
    for name, total in totals.items():
        most = ", ".join(f"{what} {count:,}" for what, count in total["outcomes"].most_common(4))
        found = "; ".join(f"{what} (seed {seed})" for what, seed in total["found"].items()) or "nothing"
        ends = f"{total['slowest_s']:.2f} s | {total['mb']} MB"
        lines.append(f"| {name} | {total['cases']:,} | {most} | {found} | {ends} |")
    return "\n".join(lines)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--turn", name, first]:
            print(json.dumps(_turn(name, int(first), TURN_S)))
        case ["--replay", name, seed]:
            print(TARGETS[name](random.Random(int(seed))))
        case given:
            sys.exit(main(float(given[0]) if given else 60.0))
