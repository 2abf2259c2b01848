"""Records what benchmarks measure: in rounds that alternate, on a quiet machine, within a bounded time.

The tables of a page stand between two marks. Each measurement is kept in a file until all rounds are
complete: a recording that ran out of time, or met a busy machine, continues when its command is given
again. What was measured while something else ran is thrown away.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROUNDS = 5
MEASURED, END = "<!-- measured -->", "<!-- end -->"

_KEPT = Path(__file__).with_name(".rounds")
_CODE = ("imagemill", "pyproject.toml", "requirements.lock")
"""What was measured: if it changes, earlier rounds no longer count."""

_IDLE_SHARE = 0.9
"""Of all cores, before a measurement begins."""
_MOST_STOLEN = 0.05
"""Of all cores, during a measurement: what a virtual machine did not get; the page says how much."""
_MOST_OF_OTHERS = 0.1
"""Of all cores, during a measurement: what processes that the benchmark did not start may use."""
_PATIENCE_S = 60
"""How long what an earlier measurement left to the servers may take, in seconds."""

_STOLEN_SHARE = "stolen"

Figures = dict[str, Any]
"""What one measurement found; it can be written as JSON."""


class Run(NamedTuple):
    """Something to measure. The page needs so many ``rounds`` of it; more follow if there is time."""

    name: str
    measure: Callable[[], Figures]
    rounds: int = ROUNDS


class Spread(NamedTuple):
    """The least, the median and the most of several measurements."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of these values."""
        return cls(min(values), statistics.median(values), max(values))

    def text(self, form: str = ".2f") -> str:
        """The median, and the least and the most behind it."""
        texts = [f"{value:{form}}" for value in self]
        if len(set(texts)) == 1:
            return texts[1]
        return f"{texts[1]} ({texts[0]}-{texts[2]})"


def options(parser: argparse.ArgumentParser, minutes: float) -> None:
    """Add the options that all recordings have; ``minutes`` is how long this one takes at most."""
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="stop, and continue next time (default %(default)g)"
    )
    parser.add_argument(
        "--anew", action="store_true", help="forget the rounds of a recording that was cut short"
    )
    parser.add_argument(
        "--once", action="store_true", help="one round, however busy the machine is; print, record nothing"
    )


def record(
    page: Path,
    runs: Sequence[Run],
    tables: Callable[[Mapping[str, list[Figures]]], str],
    arguments: argparse.Namespace,
    *,
    sizes: object = None,
) -> int:
    """Measure in rounds that alternate, print the tables, and write them between the marks of the page.

    ``sizes`` is whatever decides what the runs measure: rounds of another size are forgotten.

    Returns:
        0 if the page was written, 1 if rounds are missing or the machine was busy.
    """
    if arguments.once:
        print(tables({run.name: [run.measure()] for run in runs}))
        return 0
    kept = _Rounds(_KEPT / f"{page.stem}.json", [run.name for run in runs], sizes)
    if arguments.anew or kept.are_complete:
        kept.forget()
    machine, end = QuietMachine(), time.monotonic() + 60 * arguments.minutes
    longest: dict[str, float] = {}
    while (run := _next(runs, kept)) is not None:
        begun = time.monotonic()
        if begun + longest.get(run.name, 0.0) > end or not machine.is_idle():
            break
        with machine.watching() as watch:
            figures = run.measure()
        longest[run.name] = max(longest.get(run.name, 0.0), time.monotonic() - begun)
        print(f"{run.name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
        if watch.trouble is None:
            kept.add(run.name, figures | {_STOLEN_SHARE: watch.stolen})
        else:
            print(f"Thrown away: {watch.trouble}.", file=sys.stderr, flush=True)
    if any(len(kept.found[run.name]) < run.rounds for run in runs):
        done = ", ".join(f"{len(kept.found[run.name])} of {run.rounds} {run.name}" for run in runs)
        print(f"Not recorded in {page.name}, the same command continues: {done}.", file=sys.stderr)
        return 1
    stolen = Spread.of([one[_STOLEN_SHARE] for several in kept.found.values() for one in several])
    stolen_text = stolen.text(".1%")
    text = (
        f"{tables(kept.found).strip()}\n\nOther machines on the same host took {stolen_text} of the CPU time."
    )
    print(text)
    before, _, rest = page.read_text().partition(MEASURED)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{MEASURED}\n\n{text}\n\n{END}{after}")
    return 0


def _next(runs: Sequence[Run], kept: _Rounds) -> Run | None:
    """The next run: those that the page needs come first, then whichever has the fewest rounds.

    Each round begins with another run, so that none is always first.
    """
    for most in (lambda run: run.rounds, lambda _run: ROUNDS):
        left = [run for run in runs if len(kept.found[run.name]) < most(run)]
        if left:
            number = min(len(kept.found[run.name]) for run in left)
            start = number % len(runs)
            turn = [run for run in (*runs[start:], *runs[:start]) if run in left]
            return next(run for run in turn if len(kept.found[run.name]) == number)
    return None


class _Rounds:
    """The measurements so far, in a file."""

    def __init__(self, file: Path, names: Sequence[str], sizes: object) -> None:
        self._file = file
        self._what = json.loads(json.dumps([_code(), sizes]))
        self.found: dict[str, list[Figures]] = {name: [] for name in names}
        if file.exists():
            what, found = json.loads(file.read_text())
            if what == self._what and found.keys() == self.found.keys():
                self.found = found
            else:
                print("Earlier rounds are of other code or sizes: beginning anew.", file=sys.stderr)

    @property
    def are_complete(self) -> bool:
        """Whether every run has all of its rounds, so that the next recording is another one."""
        return all(len(each) >= ROUNDS for each in self.found.values())

    def forget(self) -> None:
        """Begin anew."""
        self.found = {name: [] for name in self.found}

    def add(self, name: str, figures: Figures) -> None:
        """Keep a measurement."""
        self.found[name].append(figures)
        self._file.parent.mkdir(exist_ok=True)
        self._file.write_text(json.dumps([self._what, self.found]))


def _code() -> list[str]:
    root = Path(__file__).parents[1]
    names = [f"HEAD:{name}" for name in _CODE]
    return subprocess.check_output(["git", "rev-parse", *names], cwd=root, text=True).split()


class _Watch:
    """What disturbed a measurement, None if nothing did; and the share of the cores' time that was stolen."""

    trouble: str | None = None
    stolen = 0.0


class QuietMachine:
    """Watches that the machine has nothing else to do while a benchmark runs (Linux)."""

    def __init__(self) -> None:
        # What a command leaves behind when it ends still counts as the benchmark's own.
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def is_idle(self) -> bool:
        """Wait until the machine is idle; False, with the reason printed, if it stays busy."""
        for _ in range(_PATIENCE_S):
            before = _ticks()
            time.sleep(1)
            idle = _share(before, _ticks(), _IDLE)
            if idle >= _IDLE_SHARE:
                return True
        load = " ".join(f"{one:.1f}" for one in os.getloadavg())
        print(
            f"The machine is busy: {1 - idle:.0%} over {_PATIENCE_S} s (load {load}). Stopped.",
            file=sys.stderr,
        )
        return False

    @contextmanager
    def watching(self) -> Iterator[_Watch]:
        """See whether a measurement had the cores to itself."""
        watch = _Watch()
        before, theirs = _ticks(), _ticks_of_others()
        yield watch
        after = _ticks()
        used = sum(ticks - theirs.get(pid, 0) for pid, ticks in _ticks_of_others().items())
        others = used / (sum(after) - sum(before) or 1)
        watch.stolen = _share(before, after, _STOLEN)
        if others > _MOST_OF_OTHERS:
            watch.trouble = f"other processes used {others:.0%} of the cores"
        elif watch.stolen > _MOST_STOLEN:
            watch.trouble = f"{watch.stolen:.1%} of the cores' time was stolen by other machines"


_SET_CHILD_SUBREAPER = 36
_IDLE, _STOLEN = (3, 4), (7,)
"""The places in /proc/stat of idle time (waiting for a disk included), and of stolen time."""


def _ticks() -> list[int]:
    return [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _ticks_of_others() -> dict[int, int]:
    """The CPU time of each process that this one did not start, with its ended children, in clock ticks.

    What was started here is not counted instead: Ray lets the times of its own children go when they end.
    """
    used: dict[int, int] = {}
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(stat[1])
            used[int(entry.name)] = sum(int(one) for one in stat[11:15])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: ticks for pid, ticks in used.items() if pid not in ours}


def _share(before: Sequence[int], after: Sequence[int], places: Sequence[int]) -> float:
    """The share of all cores' time between two looks that was spent so."""
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return sum(passed[place] for place in places) / (sum(passed) or 1)
