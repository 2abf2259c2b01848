"""Measures the main job beside bare loops that only move the bytes; writes the table into main_job.md.

    python -m benchmarks.main_job [IMAGES]

Each measurement is the command in a process of its own, against the same emulated API (no latency, no limit,
1024 x 1024 JPEG) and the same local S3 server. CPU is that of the command, imports included; Prefect's server
runs already. The bare loops are httpx with boto3's ``put_object`` or with obstore, without queue, checks or
records. All have 25 requests at once.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.recording import QuietMachine, Spread, alternating, record
from benchmarks.side_by_side import BUCKET, Contender, Outcome, Situation, run
from benchmarks.workshop import machine
from tests.s3_server import s3_server

FILE = Path(__file__).with_suffix(".md")
FEW, MANY = 1_000, 10_000
BARE = 4_000
"""A bare loop costs the same per image, however long it is."""
CONTENDERS = (
    Contender("bare", "bare loop: httpx and boto3", "25"),
    Contender("bare", "bare loop: httpx and obstore", "25", put_with="obstore"),
    Contender("imagemill", "imagemill", "25"),
)


def table(
    found: Mapping[tuple[Contender, int], list[Outcome]], most: Mapping[Contender, int]
) -> Iterator[str]:
    """The table, line by line: the median of the rounds, and the least and the most behind it."""
    additional = {
        each: [
            1000 * (long.cpu_s - short.cpu_s) / (many - FEW)
            for short, long in zip(found[each, FEW], found[each, many], strict=True)
        ]
        for each, many in most.items()
    }
    whole = {each: [1000 * one.cpu_s / FEW for one in found[each, FEW]] for each in most}
    floors = [Spread.of(figures[CONTENDERS[0]]).median for figures in (additional, whole)]
    yield f"{machine()}; {len(whole[CONTENDERS[0]])} rounds.\n"
    yield (
        f"| what | CPU ms per additional image | times boto3's | CPU ms per image, whole run of {FEW:,}"
        f" | times boto3's | images/s | peak MB, {FEW:,} images | peak MB, more images |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for each, many in most.items():
        costs = []
        for figures, floor in zip((additional, whole), floors, strict=True):
            spread = Spread.of(figures[each])
            costs += [spread.text(), f"{spread.median / floor:.2f}"]
        speed = Spread.of([many / one.working_s for one in found[each, many]]).text(".0f")
        few_mb, many_mb = (
            Spread.of([one.peak_mb for one in found[each, n]]).text(".0f") for n in (FEW, many)
        )
        yield f"| {' | '.join((each.label, *costs, speed, few_mb, f'{many_mb} at {many:,}'))} |"


def main(many: int) -> int:
    """Measure in rounds that alternate, and write the table."""
    most = {each: min(many, BARE) if each.name == "bare" else many for each in CONTENDERS}
    runs = [(each, images) for each, longest in most.items() for images in (FEW, longest)]
    found: dict[tuple[Contender, int], list[Outcome]] = defaultdict(list)
    quiet = QuietMachine()
    with prefect_test_harness(server_startup_timeout=180):
        prefect_url = str(get_current_settings().api.url)
        for each, images in alternating(runs):
            # An S3 server and a folder of its own: the disk need not hold the pictures of all rounds.
            with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder)) as s3:
                s3.client().create_bucket(Bucket=BUCKET)
                quiet.wait()
                situation = Situation(f"free-{images}", images, latency_s=0.0)
                outcome = run(each, situation, sys.executable, s3, prefect_url, Path(folder))
                assert not outcome.missing, outcome
                found[each, images].append(outcome)
    return record(FILE, "\n".join(table(found, most)), quiet)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else MANY))
