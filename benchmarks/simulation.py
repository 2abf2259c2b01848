"""Whole runs in the simulator, as many seeds as time allows, and faults put back to see that it finds them.

    nice python -m benchmarks.simulation [SEEDS] [MINUTES]

Writes simulation.md: what the seeds met, how many violated what must be true, and after how many seeds each
fault that was put back showed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CHUNK = 10
MOST_SEEDS_A_FAULT = 25
_clock = time.perf_counter  # time itself is simulated


def play_seeds(first: int) -> tuple[int, Counter[str], list[str], float]:
    """Play some seeds: how many, what they met, their violations, and the CPU seconds they took."""
    from tests.simulation.scenario import drawn  # noqa: PLC0415
    from tests.simulation.simulation import simulator  # noqa: PLC0415

    met: Counter[str] = Counter()
    violations = []
    with tempfile.TemporaryDirectory(dir=_memory()) as folder, simulator(Path(folder) / "home") as play:
        begun_s = time.process_time()
        for seed in range(first, first + CHUNK):
            report = play(drawn(seed))
            met += report.met
            violations += [f"seed {seed}: {words}" for words in report.violations]
        cpu_s = time.process_time() - begun_s
    return CHUNK, met, violations, cpu_s


def find(fault: str) -> tuple[str, tuple[int, int, str] | None]:
    """Put a fault back, and play until it shows."""
    from tests.simulation.reintroduced import first_found  # noqa: PLC0415
    from tests.simulation.simulation import simulator  # noqa: PLC0415

    with tempfile.TemporaryDirectory(dir=_memory()) as folder, simulator(Path(folder) / "home") as play:
        return fault, first_found(lambda scenario: play(scenario).violations, fault, MOST_SEEDS_A_FAULT)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _kind(what: str) -> str:
    words = what.split()
    return " ".join(words[:4]) if what.startswith("death: s3") else what


def main(seeds: int, minutes: float) -> None:
    """Play, and write the tables."""
    from tests.simulation.reintroduced import REINTRODUCED  # noqa: PLC0415

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = dict(pool.imap_unordered(find, REINTRODUCED))
        pool.terminate()
    begun, played, cpu_s = _clock(), 0, 0.0
    met: Counter[str] = Counter()
    violations: list[str] = []
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=20) as pool:
        for count, some, wrong, took_s in pool.imap_unordered(play_seeds, range(0, seeds, CHUNK)):
            played, cpu_s = played + count, cpu_s + took_s
            met += some
            violations += wrong
            if _clock() - begun > 60 * minutes:
                break
        pool.terminate()
    kinds: Counter[str] = Counter()
    for what, count in met.items():
        kinds[_kind(what)] += count
    lines = [
        "# Simulated runs",
        "",
        "By `python -m benchmarks.simulation`: whole runs on virtual time, with emulated APIs, an S3",
        "bucket in memory and a memory or SQLite job store (`tests/simulation`). A seed decides everything.",
        "Violations are: a job without its end or its own picture, a picture paid twice that need not be,",
        "a sum that is not the bill's, a limit exceeded, a record that cannot be read, a secret, a",
        "traceback, or a run that does not end.",
        "",
        f"{played:,} seeds, {len(violations)} violations; {cpu_s / played:.2f} s of CPU per seed.",
        "",
        "| what the runs met | times |",
        "|---|---|",
        *[f"| {what} | {count:,} |" for what, count in sorted(kinds.items())],
        "",
        "## Faults put back",
        "",
        "Each alone, over seeds that have what it takes to show it (such as its API, or two runs at",
        f"once), at most {MOST_SEEDS_A_FAULT}:",
        "",
        "| fault | seeds until found | as |",
        "|---|---|---|",
    ]
    for fault in REINTRODUCED:
        shown = found[fault]
        after, words = (f"{shown[0]} (seed {shown[1]})", shown[2][:110]) if shown else ("not found", "")
        lines.append(f"| {fault} | {after} | {words.replace('|', '/')} |")
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print(*violations, sep="\n")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        given = [sys.executable, "-m", "benchmarks.simulation", *sys.argv[1:]]
        os.execve(sys.executable, given, {**os.environ, "PYTHONHASHSEED": "0"})
    main(int(sys.argv[1]) if sys.argv[1:] else 100_000, float(sys.argv[2]) if sys.argv[2:] else 600.0)
