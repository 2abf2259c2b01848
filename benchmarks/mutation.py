"""Plays simulations with the mutations that no unit test noticed: what does a whole run notice?

    mutmut run 'imagemill.runs.recovery.*'                       # makes the mutants, runs the unit tests
    PYTHONHASHSEED=0 python benchmarks/mutation.py imagemill/runs/recovery.py [SEEDS [STRIDE]]

Each mutant that survived its unit tests, or has none, gets a forked process that plays the first seeds (60,
or as many as given) until something is violated; with a STRIDE of 3, only every third mutant. One whose seeds
take ten times as long as without it counts as noticed. Prints a row for mutation.md, and the names of what is
left, for ``mutmut show NAME``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_SEEDS = 60
_UNNOTICED = {0: "survived", 5: "no tests", 33: "no tests", None: "no tests"}
_LEFT, _NOTICED = 0, 1
_clock = time.perf_counter  # time itself is simulated


def main(module: str, seeds: int = _SEEDS, stride: int = 1) -> None:
    """Play the seeds with each unnoticed mutant of a module, or some of them."""
    exit_codes = json.loads((_ROOT / "mutants" / f"{module}.meta").read_bytes())["exit_code_by_key"]
    names = [name for name, code in exit_codes.items() if code in _UNNOTICED][::stride]
    os.chdir(_ROOT / "mutants")
    sys.path.insert(0, str(_ROOT / "mutants"))
    os.environ["MUTANT_UNDER_TEST"] = ""
    from tests.simulation.scenario import drawn  # noqa: PLC0415 - the mutants' own
    from tests.simulation.simulation import simulator  # noqa: PLC0415

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder, simulator(Path(folder) / "home") as play:
        scenarios = [drawn(seed) for seed in range(seeds)]
        begun = _clock()
        if any(play(scenario).violations for scenario in scenarios):
            sys.exit("Something is violated without a mutation.")
        patience_s = 10 * (_clock() - begun)
        left = [name for name in names if _played(play, scenarios, name, patience_s) == _LEFT]
    were = Counter(_UNNOTICED.get(code, "noticed") for code in exit_codes.values())
    cells = [f"`{module}`", len(exit_codes), *(were[kind] for kind in ("noticed", "survived", "no tests"))]
    cells += [len(names), len(names) - len(left), len(left)]
    print("| " + " | ".join(map(str, cells)) + " |", *left, sep="\n")


def _played(play: Callable[..., Any], scenarios: list[Any], name: str, patience_s: float) -> int:
    """Whether the seeds, played in a process of its own, notice a mutant."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            signal.setitimer(signal.ITIMER_REAL, patience_s)  # whose signal ends the process
            os.environ["MUTANT_UNDER_TEST"] = name
            os._exit(_NOTICED if any(play(scenario).violations for scenario in scenarios) else _LEFT)
        os._exit(_NOTICED)
    _, status = os.waitpid(pid, 0)
    noticed = _NOTICED if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    print(f"{'left' if noticed == _LEFT else 'noticed'} {name}", file=sys.stderr, flush=True)
    return noticed


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
