"""Measures what the look at pictures finds and what it costs; prints Markdown tables.

    python -m benchmarks.quality [IMAGES]

In a first run the emulated API slips each flaw into 1 % of the pictures, of 512 x 512: precision and
recall are those of the column ``suspect``. Then runs with ``--quality off``, ``auto`` and ``all`` alternate,
three of each, with half as many pictures of 1024 x 1024; their CPU is the client process's, for each image
beyond the first tenth, so that start and end do not count.
"""

from __future__ import annotations

import resource
import statistics
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workshop import BUCKET, Workshop, machine, workshop
from imagemill.emulator import Emulator, Settings

FLAWS = ("blurred", "flat", "half_decoded", "letterboxed", "near_duplicate")
SHARE = 0.01
ROUNDS = 3


def found(workshop: Workshop, images: int) -> list[str]:
    """Rows of the table of verdicts."""
    flawed = int(images * SHARE)
    markers = [f" #fault:{flaw}" for flaw in FLAWS for _ in range(flawed)]
    prompts = [f"a product on a shelf, {n}{marker}" for n, marker in enumerate(markers)]
    prompts += [f"a product on a shelf, {n}" for n in range(len(markers), images)]
    with Emulator(Settings(latency_s=0)) as emulated:
        a_round = workshop.round(emulated, "together", prompts, width="512", height="512", quality="all")
        ended = a_round.finish()
    assert ended.code == 0, ended.err
    client = workshop.s3.client()
    table = client.get_object(Bucket=BUCKET, Key=f"{a_round.name}/runs/{a_round.name}/jobs.parquet")
    jobs = pq.read_table(pa.BufferReader(table["Body"].read()), columns=["id", "suspect"]).to_pylist()
    client.close()
    right, flagged = Counter[str](), Counter[str]()
    for job in jobs:
        true = job["id"].rpartition("#fault:")[2] if "#fault:" in job["id"] else None
        for verdict in filter(None, job["suspect"].split(",")):
            flagged[verdict] += 1
            right[verdict] += verdict == true
    return [
        f"| {flaw} | {flawed} | {flagged[flaw]} | {right[flaw] / max(1, flagged[flaw]):.0%}"
        f" | {right[flaw] / flawed:.0%} |"
        for flaw in FLAWS
    ]


def cpu_ms(workshop: Workshop, emulated: Emulator, images: int, file_format: str, quality: str) -> float:
    """CPU of a run per image beyond the first tenth, in milliseconds."""

    def used(count: int) -> float:
        prompts = [f"{quality} {n}" for n in range(count)]
        sizes = {"width": "1024", "height": "1024", "format": file_format, "quality": quality}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = workshop.round(emulated, "together", prompts, concurrency="20", **sizes).finish()
        assert ended.code == 0, ended.err
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return 1000 * (used(images) - used(images // 10)) / (images - images // 10)


def main(images: int) -> None:
    """Print both tables."""
    with workshop() as shop:
        print(f"{machine()}\n\n| flaw | pictures with it | flagged | precision | recall |")
        print("|---|---|---|---|---|")
        print("\n".join(found(shop, images)), flush=True)
        print("\n| format | quality | CPU ms/image | least to most | times off |\n|---|---|---|---|---|")
        with Emulator(Settings(latency_s=0, pictures="fast")) as emulated:
            for file_format in ("jpeg", "png"):
                taken: dict[str, list[float]] = {"off": [], "auto": [], "all": []}
                for _ in range(ROUNDS):
                    for quality, values in taken.items():
                        values.append(cpu_ms(shop, emulated, images // 2, file_format, quality))
                off = statistics.median(taken["off"])
                for quality, values in taken.items():
                    middle = statistics.median(values)
                    print(
                        f"| {file_format} | {quality} | {middle:.2f} | {min(values):.2f} to {max(values):.2f}"
                        f" | {middle / off:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
