"""Whole runs in the simulator, as many seeds as time allows, and faults put back to see that it finds them.

    nice python -m benchmarks.simulation [SEEDS] [MINUTES] [PROCESSES]   play the next seeds
    nice python -m benchmarks.simulation again                           play the violating seeds once more
    nice python -m benchmarks.simulation faults                          put the faults back, one by one

Each call adds to simulation.json, from which it writes simulation.md: what the seeds met, which of them
violated something and at which commit they no longer did, and after how many seeds each fault that was put
back showed. A call goes on after the last seed that was played; delete simulation.json to begin again. While
seeds violate something it ends with exit code 1 and the commands that replay them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

CHUNK = 50
MOST_SEEDS_A_FAULT = 100
_STATE = Path(__file__).with_suffix(".json")
_SAVE_EVERY_S = 60.0
_ROOT = Path(__file__).parents[1]
_PLAYED = ("imagemill", "tests/simulation")
_clock = time.perf_counter  # time itself is simulated
_stack = ExitStack()
_play: Callable[..., Any]


class Played(NamedTuple):
    """Some seeds: what they met, what was violated, and the CPU seconds that they took."""

    end: int
    met: Counter[str]
    violations: dict[int, str]
    cpu_s: float


def open_simulator() -> None:
    """Put all that simulations need in place, once per process."""
    global _play  # noqa: PLW0603 - what a pool's process keeps
    from tests.simulation.simulation import simulator  # noqa: PLC0415

    folder = _stack.enter_context(tempfile.TemporaryDirectory(dir=_memory()))
    _play = _stack.enter_context(simulator(Path(folder) / "home"))


def play_seeds(seeds: tuple[int, int]) -> Played:
    """Play the seeds from the first to before the last."""
    from tests.simulation.scenario import drawn  # noqa: PLC0415

    met: Counter[str] = Counter()
    violations = {}
    begun_s = time.process_time()
    for seed in range(*seeds):
        report = _play(drawn(seed))
        met += report.met
        if report.violations:
            violations[seed] = report.violations[0].partition("\n")[0]
    return Played(seeds[1], met, violations, time.process_time() - begun_s)


def find(fault: str) -> tuple[str, tuple[int, int, str] | None]:
    """Put a fault back, and play until it shows."""
    from tests.simulation.reintroduced import first_found  # noqa: PLC0415

    return fault, first_found(lambda scenario: _play(scenario).violations, fault, MOST_SEEDS_A_FAULT)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _kind(what: str) -> str:
    words = what.split()
    return " ".join(words[:4]) if what.startswith("death: s3") else what


def _commit() -> str:
    """The last commit that changed what is played, marked if more was changed since."""
    log = ["git", "log", "-1", "--format=%h", "--", *_PLAYED]
    commit = subprocess.run(log, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *_PLAYED], cwd=_ROOT, check=False)
    return f"{commit}-dirty" if changed.returncode else commit


def play_more(state: dict[str, Any], seeds: int, minutes: float, processes: int) -> None:
    """Play so many seeds after those in the state."""
    stretches: list[dict[str, Any]] = state["stretches"]
    first = stretches[-1]["end"] if stretches else 0
    played_at = {"commit": _commit(), "on": datetime.now(UTC).date().isoformat()}
    if not stretches or not played_at.items() <= stretches[-1].items():
        stretches.append({**played_at, "first": first, "end": first, "cpu_s": 0.0})
    stretch = stretches[-1]
    begun = saved = _clock()
    chunks = [(at, min(at + CHUNK, first + seeds)) for at in range(first, first + seeds, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(processes, open_simulator) as pool:
        for played in pool.imap(play_seeds, chunks):
            for seed, words in played.violations.items():
                state["violating"][str(seed)] = {"at": stretch["commit"], "words": words, "clean_at": None}
                print(f"seed {seed}: {words}", file=sys.stderr, flush=True)
            stretch |= {"end": played.end, "cpu_s": round(stretch["cpu_s"] + played.cpu_s, 1)}
            for what, count in played.met.items():
                state["met"][_kind(what)] = state["met"].get(_kind(what), 0) + count
            if _clock() - saved > _SAVE_EVERY_S:
                save(state)
                saved = _clock()
            if _clock() - begun > 60 * minutes:
                break
        pool.terminate()


def play_again(state: dict[str, Any]) -> None:
    """Play the seeds that violated something once more, and note which no longer do."""
    commit = _commit()
    seeds = [int(seed) for seed in state["violating"]]
    with multiprocessing.get_context("spawn").Pool(None, open_simulator) as pool:
        for seed, played in zip(seeds, pool.imap(play_seeds, [(s, s + 1) for s in seeds]), strict=True):
            violating = state["violating"][str(seed)]
            if seed in played.violations:
                violating |= {"words": played.violations[seed], "clean_at": None}
            else:
                violating["clean_at"] = violating["clean_at"] or commit
    state["again_commit"] = commit


def put_back_all(state: dict[str, Any]) -> None:
    """Put each fault back, and note when it showed."""
    from tests.simulation.reintroduced import REINTRODUCED  # noqa: PLC0415

    with multiprocessing.get_context("spawn").Pool(None, open_simulator) as pool:
        found = dict(pool.imap_unordered(find, REINTRODUCED))
    state["faults"] = {fault: found[fault] for fault in REINTRODUCED}
    state["faults_commit"] = _commit()


def save(state: dict[str, Any]) -> None:
    """Write the state, and the tables that it makes."""
    _STATE.write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    stretches = [stretch for stretch in state["stretches"] if stretch["end"] > stretch["first"]]
    violating = dict(sorted(state["violating"].items(), key=lambda item: int(item[0])))
    count, cpu_s = (stretches[-1]["end"] if stretches else 0), sum(s["cpu_s"] for s in stretches)
    lines = [
        "# Simulated runs",
        "",
        "By `python -m benchmarks.simulation`: whole runs on virtual time, with emulated APIs, an S3",
        "bucket in memory and a job store in memory, in SQLite, or on a server (`tests/simulation`). A seed",
        "decides everything. The server keeps its jobs as SQLite does and has trouble as Postgres may have.",
        "Violations are: a job that does not end or has another job's picture, a picture paid twice without",
        "need, a sum that is not the bill's, a limit exceeded, a record that cannot be read, a secret, a",
        "traceback, or a run that does not end. What is Postgres's or Redis's own, and several machines, are",
        "not simulated: `tests/stores` and `tests/cluster` test them against real servers.",
        "",
        f"{count:,} seeds, {cpu_s / max(1, count):.3f} s of CPU each.",
        f"{len(violating)} violated something when first played, {len(_open(state))} still do.",
        "",
        "| seeds | commit | on | CPU s per seed |",
        "|---|---|---|---|",
        *[
            f"| {s['first']:,} to {s['end'] - 1:,} | {s['commit']} | {s['on']}"
            f" | {s['cpu_s'] / (s['end'] - s['first']):.3f} |"
            for s in stretches
        ],
        "",
        "| violating seed | first played at | no longer at | what was violated |",
        "|---:|---|---|---|",
        *[
            f"| {seed} | {one['at']} | {one['clean_at'] or 'open'} | {one['words'][:110].replace('|', '/')} |"
            for seed, one in violating.items()
        ],
        "",
        f"All of these were played once more at {state['again_commit']}." if violating else "",
        "",
        "| what the runs met | times |",
        "|---|---:|",
        *[f"| {what} | {times:,} |" for what, times in sorted(state["met"].items())],
        "",
        "## Faults put back",
        "",
        "`python -m benchmarks.simulation faults`, each alone, over seeds that have what it takes to show it",
        f"(such as its API, or two runs at once), at most {MOST_SEEDS_A_FAULT}.",
        f"Commit: {state['faults_commit']}.",
        "",
        "| fault | seeds until found | as |",
        "|---|---|---|",
    ]
    for fault, shown in state["faults"].items():
        after, words = (f"{shown[0]} (seed {shown[1]})", shown[2][:110]) if shown else ("not found", "")
        lines.append(f"| {fault} | {after} | {words.replace('|', '/')} |")
    _STATE.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _open(state: dict[str, Any]) -> dict[str, str]:
    """The seeds that still violate something, and what."""
    return {seed: one["words"] for seed, one in state["violating"].items() if one["clean_at"] is None}


def main(what: list[str]) -> int:
    """Play, and write the tables; 1 while seeds violate something."""
    state: dict[str, Any] = {"stretches": [], "met": {}, "violating": {}, "again_commit": ""}
    state |= {"faults": {}, "faults_commit": ""}
    if _STATE.exists():
        state |= orjson.loads(_STATE.read_bytes())
    if what == ["faults"]:
        put_back_all(state)
    elif what == ["again"]:
        play_again(state)
    else:
        seeds, minutes, processes = [*map(float, what), *(100_000, 600, os.cpu_count() or 1)[len(what) :]]
        play_more(state, int(seeds), minutes, int(processes))
    save(state)
    print(_STATE.with_suffix(".md").read_text(encoding="utf-8"))
    for seed, words in _open(state).items():
        print(f"seed {seed}: {words}\nReplay it: python -m tests.simulation {seed}", file=sys.stderr)
    return 1 if _open(state) else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        given = [sys.executable, "-m", "benchmarks.simulation", *sys.argv[1:]]
        os.execve(sys.executable, given, {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main(sys.argv[1:]))
