"""Measures the main job beside bare loops that only move the bytes; writes the table into main_job.md.

    python -m benchmarks.main_job

Each measurement is the command in a process of its own, against the same emulated API (no latency, no limit,
1024 x 1024 JPEG) and the same local S3 server. CPU is that of the command, imports included; Prefect's server
runs already. The bare loops are httpx with boto3's ``put_object`` or with obstore, without queue, checks or
records. All have 25 requests at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.recording import Figures, Run, Spread, options, record
from benchmarks.side_by_side import Contender, Servers, Situation, run
from benchmarks.workshop import machine

FILE = Path(__file__).with_suffix(".md")
FEW, MANY = 1_000, 10_000
BARE = 3_000
"""A bare loop costs the same per image, however long it is."""
CONTENDERS = {
    "boto3": Contender("bare", "bare loop: httpx and boto3", "25"),
    "obstore": Contender("bare", "bare loop: httpx and obstore", "25", put_with="obstore"),
    "imagemill": Contender("imagemill", "imagemill", "25"),
}
FLOORS = ("boto3", "obstore")
MOST = {name: BARE if name in FLOORS else MANY for name in CONTENDERS}


def costs(found: Mapping[str, list[Figures]], name: str) -> tuple[Spread, Spread]:
    """The CPU in milliseconds of an additional image, and of an image in a whole run."""
    few, many = ([one["cpu_s"] for one in found[f"{name} {images}"]] for images in (FEW, MOST[name]))
    additional = [1000 * (b - a) / (MOST[name] - FEW) for a, b in zip(few, many, strict=True)]
    return Spread.of(additional), Spread.of([1000 * cpu / FEW for cpu in few])


def table(found: Mapping[str, list[Figures]]) -> str:
    """The table: the median of the rounds, and the least and the most behind it."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    yield f"{machine()}; {min(map(len, found.values()))} rounds.\n"
    times = "".join(f" | times {floor}'s" for floor in FLOORS)
    yield (
        f"| what | CPU ms per additional image{times} | CPU ms per image, whole run of {FEW:,}{times}"
        f" | images/s | peak MB, {FEW:,} images | peak MB, more images |"
    )
    yield "|---|" + "---:|" * 9
    floors = [costs(found, floor) for floor in FLOORS]
    for name, each in CONTENDERS.items():
        cells = [each.label]
        for place, spread in enumerate(costs(found, name)):
            cells += [spread.text(), *(f"{spread.median / floor[place].median:.2f}" for floor in floors)]
        few, many = found[f"{name} {FEW}"], found[f"{name} {MOST[name]}"]
        cells.append(Spread.of([one["images"] / one["working_s"] for one in many]).text(".0f"))
        cells.append(Spread.of([one["peak_mb"] for one in few]).text(".0f"))
        cells.append(f"{Spread.of([one['peak_mb'] for one in many]).text('.0f')} at {MOST[name]:,}")
        yield f"| {' | '.join(cells)} |"


def measured(name: str, images: int, servers: Servers, prefect_url: str) -> Figures:
    """One contender, which must not lose an image."""
    situation = Situation("free", images, latency_s=0.0)
    outcome = run(CONTENDERS[name], situation, sys.executable, servers, prefect_url)
    assert not outcome["missing"], outcome
    return outcome


def main() -> int:
    """Measure in rounds that alternate, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=25)
    arguments = parser.parse_args()
    with Servers() as servers, prefect_test_harness(server_startup_timeout=180):
        prefect_url = str(get_current_settings().api.url)
        runs = [
            Run(f"{name} {images}", partial(measured, name, images, servers, prefect_url))
            for name in CONTENDERS
            for images in (FEW, MOST[name])
        ]
        return record(FILE, runs, table, arguments, sizes=[FEW, MOST])


if __name__ == "__main__":
    sys.exit(main())
