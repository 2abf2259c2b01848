"""How fast the job stores are with a million jobs; prints a Markdown table.

    python -m benchmarks.stores [--jobs 1000000] [STORE ...]

A STORE is what --store takes; without any, all four are measured, Postgres and Redis as servers of their
own on this machine, memory with the 1,000 jobs that it is for. Each
is measured in a process of its own, whose peak memory is this client's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import anyio

from imagemill.jobs import Job
from imagemill.stores import MEMORY_LIMIT, open_store
from tests.servers import PostgresServer, RedisServer, url_of

BATCH = 10_000


def job(number: int) -> Job:
    """A job such as a shop has."""
    prompt = f"Product photo number {number} of a ceramic mug on a wooden table, soft window light, 85 mm"
    return Job(
        number, f"sku-{number}", f"{number:064x}", prompt, None, 1024, 1024, number, 4, "flux/schnell", "png"
    )


async def measure(name: str, jobs: int) -> dict[str, float]:
    """Seconds of each step, and the peak memory in MB, of one store."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with open_store(name, rows=jobs, run_id="benchmark", folder=Path(folder)) as store:
            await store.clear()
            begun = time.perf_counter()
            for first in range(0, jobs, BATCH):
                await store.add([job(number) for number in range(first, min(jobs, first + BATCH))])
            await store.mark_planned()
            found["insert"] = time.perf_counter() - begun
            begun = time.perf_counter()
            assert len(await store.unfinished_numbers()) == jobs
            found["numbers"] = time.perf_counter() - begun
            begun = time.perf_counter()
            assert len(await store.unfinished(jobs // 2, jobs // 2 + 249)) == 250  # one shard
            found["shard"] = time.perf_counter() - begun
            finished = await store.unfinished(0, 9_999)
            begun = time.perf_counter()
            for start in range(0, len(finished), 250):
                for one in finished[start : start + 250]:
                    one.finish(1.0, image=f"images/{one.key}.png", image_bytes=1_400_000, latency_s=0.8)
                    store.save(one)
                await store.commit()
            found["update"] = (time.perf_counter() - begun) / (len(finished) / 250)
            await store.clear()
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", metavar="STORE")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(anyio.run(measure, chosen.stores[0], chosen.jobs)))
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"{os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}.\n"
    )
    print("| store | jobs | insert | read pending numbers | load a shard of 250 |"
          " commit of 250 updates | peak RSS |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    with ExitStack() as servers:
        stores = chosen.stores or [
            "memory",
            "sqlite",
            url_of(servers.enter_context(PostgresServer())),
            url_of(servers.enter_context(RedisServer())),
        ]
        for store in stores:
            jobs = min(chosen.jobs, MEMORY_LIMIT) if store == "memory" else chosen.jobs
            command = [sys.executable, "-m", "benchmarks.stores", "--one", f"--jobs={jobs}", store]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            found = json.loads(output)
            print(
                f"| {store.partition(':')[0]} | {jobs:,} | {found['insert']:.2f} s | {found['numbers']:.2f} s"
                f" | {found['shard'] * 1000:.1f} ms | {found['update'] * 1000:.0f} ms"
                f" | {found['peak']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
