"""Plays seeds: ``python -m tests.simulation SEED`` shows one with its trace, ``--seeds 0:9`` plays nine."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path


def main() -> int:
    """Play the seeds of the command line; 1 where one of them violates what must be true."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="*", help="a seed to replay, with its trace")
    parser.add_argument("--seeds", help="FIRST:END, to play without traces")
    parser.add_argument("--put-back", metavar="FAULT", help="a fault of tests/simulation/reintroduced.py")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts are walked through in the same order
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], environment)

    warnings.simplefilter("ignore")  # of what killed processes left open, at exit
    from tests.simulation.reintroduced import put_back  # noqa: PLC0415 - loads Prefect
    from tests.simulation.scenario import drawn  # noqa: PLC0415
    from tests.simulation.simulation import simulator  # noqa: PLC0415

    first, _, end = (arguments.seeds or "0:0").partition(":")
    seeds = arguments.seed or range(int(first), int(end))
    met: Counter[str] = Counter()
    failed = 0
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    fault = put_back(arguments.put_back) if arguments.put_back else nullcontext()
    with (
        tempfile.TemporaryDirectory(dir=memory) as folder,
        simulator(Path(folder) / "home") as play,
        fault,
    ):
        for seed in seeds:
            scenario = drawn(seed)
            report = play(scenario, trace=bool(arguments.seed))
            met += report.met
            if report.trace is not None:
                print(*report.trace, scenario, sep="\n")
            for violation in report.violations:
                print(f"Seed {seed}: {violation}\nReplay it with: {report.command}", file=sys.stderr)
            failed += bool(report.violations)
    print(f"{len(seeds)} seeds, {failed} of them with a violation")
    for what, count in sorted(met.items()):
        print(f"{count:8,} {what}")
    return 1 if failed else 0


sys.exit(main())
