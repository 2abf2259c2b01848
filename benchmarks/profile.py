"""Samples where a run spends its CPU time; writes every function above 3 % into profile.md.

    python -m benchmarks.profile [IMAGES]

The run is the command in a process of its own, against the emulated API without latency or limit and a local
S3 server; Prefect's server runs already. py-spy samples its threads a hundred times a second. Samples in
which a thread waits are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.recording import END, MEASURED
from benchmarks.side_by_side import (
    LONGEST_S,
    ROOT,
    Contender,
    Servers,
    Situation,
    emulated_api,
    write_catalog,
)
from benchmarks.workshop import machine

FILE = Path(__file__).with_suffix(".md")
IMAGES = 10_000
LEAST = 0.03
"""The share from which a cost is named."""
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]*?)(:\d+)?\)")
_WAITS = {"wait", "select", "get", "_connection_worker_thread", "poll", "accept", "do_poll", "_worker"}
"""Functions at the end of a stack whose thread waits, though py-spy may call it busy."""


def sampled(images: int, servers: Servers, prefect_url: str) -> list[tuple[list[str], int]]:
    """The stacks of one run, outermost frame first, and how often each was seen."""
    s3, home = servers.for_run(images)
    catalog, stacks = home / "catalog.parquet", home / "stacks"
    write_catalog(catalog, images)
    with emulated_api(Situation("profile", images, latency_s=0.0)) as api:
        told = {"API_URL": api.url, "S3_URL": s3.endpoint_url, "PREFIX": home.name, "CATALOG": str(catalog)}
        environment = {
            **os.environ,
            **s3.environment,
            "IMAGEMILL_HOME": str(home),
            "TOGETHER_API_KEY": "benchmark",
            "PREFECT_API_URL": prefect_url,
            "PYTHONPATH": str(ROOT),
        }
        command = Contender("imagemill", "imagemill", "25").command(sys.executable, told)
        spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--rate", "100", "--format", "raw"]
        subprocess.run(
            [*spy, "--output", str(stacks), "--", *command],
            check=True,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            timeout=LONGEST_S,
        )
    lines = (line.rpartition(" ") for line in stacks.read_text().splitlines())
    return [(stack.split(";"), int(count)) for stack, _, count in lines]


def tables(images: int, samples: Iterable[tuple[list[str], int]]) -> Iterator[str]:
    """The tables, line by line: functions with all that they call, and alone."""
    whole, alone, total = Counter[str](), Counter[str](), 0
    for stack, count in samples:
        names = [name for frame in stack if (name := _named(frame))]
        if not names or names[-1].partition(" ")[0].rpartition(".")[2] in _WAITS:
            continue
        total += count
        alone[names[-1]] += count
        for name in set(names):
            whole[name] += count
    yield f"{machine()}; {images:,} images, {total:,} samples.\n"
    for title, counts in (("with what it calls", whole), ("alone", alone)):
        yield f"| function | share of the CPU time, {title} |"
        yield "|---|---:|"
        for name, count in counts.most_common():
            ours = title == "alone" or "imagemill/" in name
            if ours and LEAST <= count / total < 0.95:
                yield f"| `{name}` | {count / total:.1%} |"
        yield ""


def _named(frame: str) -> str | None:
    """A frame as function and file, from the package's own folder on."""
    found = _FRAME.fullmatch(frame)
    if found is None:
        return None
    path = found["file"].removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
    return f"{found['function']} {path}"


def main() -> int:
    """Sample one run, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="?", type=int, default=IMAGES)
    images = parser.parse_args().images
    with Servers() as servers, prefect_test_harness(server_startup_timeout=180):
        samples = sampled(images, servers, str(get_current_settings().api.url))
    text = "\n".join(tables(images, samples)).strip()
    print(text)
    before, _, rest = FILE.read_text().partition(MEASURED)
    FILE.write_text(f"{before}{MEASURED}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
