"""Records what benchmarks measure: in several rounds that alternate, and only on a quiet machine.

The tables of a page stand between two marks. What was measured while something else ran is printed, and not
written there.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

ROUNDS = 5
MEASURED, END = "<!-- measured -->", "<!-- end -->"

_IDLE_SHARE = 0.9
"""Of all cores, before a measurement begins."""
_MOST_STOLEN = 0.05
"""Of all cores, over the whole recording: what a virtual machine did not get; the page says how much."""
_PATIENCE_S = 60
"""How long what an earlier measurement left to the servers may take, in seconds."""


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
        if self.least == self.most:
            return f"{self.median:{form}}"
        return f"{self.median:{form}} ({self.least:{form}}-{self.most:{form}})"


def alternating(contenders: Sequence[T], rounds: int = ROUNDS) -> Iterator[T]:
    """Each contender once per round, each round beginning with another, so that none is always first."""
    for number in range(rounds):
        start = number % len(contenders)
        yield from (*contenders[start:], *contenders[:start])


class QuietMachine:
    """Watches that the machine has nothing else to do while a benchmark runs (Linux)."""

    def __init__(self) -> None:
        self._first = _ticks()
        self.trouble: str | None = None

    def wait(self) -> None:
        """Wait until the machine is idle; call it before each measurement."""
        if self.trouble is not None:
            return
        for _ in range(_PATIENCE_S):
            before = _ticks()
            time.sleep(1)
            idle = _share(before, _ticks(), _IDLE)
            if idle >= _IDLE_SHARE:
                return
        self._complain(f"before a measurement it was {1 - idle:.0%} busy for {_PATIENCE_S} s")

    def check(self) -> float:
        """See that the machine had its cores to itself; the share of their time that others were given."""
        stolen = _share(self._first, _ticks(), _STOLEN)
        if stolen > _MOST_STOLEN:
            self._complain(f"{stolen:.1%} of its CPU time was stolen by other machines")
        return stolen

    def _complain(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble
        load = " ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"The machine is busy: {trouble} (load {load}). Nothing will be recorded.", file=sys.stderr)


def record(page: Path, text: str, machine: QuietMachine) -> int:
    """Print the tables, and write them between the marks of the page; 1 if the machine was busy."""
    stolen = machine.check()
    text = f"{text.strip()}\n\nOther machines on the same host took {stolen:.1%} of the CPU time meanwhile."
    print(text)
    if machine.trouble is not None:
        print(f"Not recorded in {page.name}: {machine.trouble}.", file=sys.stderr)
        return 1
    before, _, rest = page.read_text().partition(MEASURED)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{MEASURED}\n\n{text}\n\n{END}{after}")
    return 0


_IDLE, _STOLEN = (3, 4), (7,)
"""The places of idle time (waiting for a disk included), and of stolen time, in /proc/stat."""


def _ticks() -> list[int]:
    return [int(one) for one in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _share(before: Sequence[int], after: Sequence[int], places: Sequence[int]) -> float:
    """The share of all cores' time between two looks that was spent so."""
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return sum(passed[place] for place in places) / (sum(passed) or 1)
