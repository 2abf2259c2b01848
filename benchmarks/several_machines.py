"""Holds one account's hidden rate with one to four worker processes; prints and writes several_machines.md.

    python -m benchmarks.several_machines

A real Dask scheduler and workers, each with a working folder of its own, a Postgres job store, a Prefect
server and an S3 server, all on this machine. The account answers in 0.5 s (median) and lets 1,800 requests a
minute through, in a bucket of 10. The last run loses a worker to SIGKILL half way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workshop import Workshop, machine, wait_for, workshop
from imagemill.emulator import Emulator, Settings
from tests.cluster.local_cluster import Cluster
from tests.servers import PASSWORD, PostgresServer, url_of

FILE = Path(__file__).with_suffix(".md")
ABOUT = """\
# Several machines

`python -m benchmarks.several_machines`

Worker processes of a real Dask cluster, each with a working folder of its own, a Postgres job store and
Prefect's global concurrency limit share one account. *share of the rate*: images, by the time from the API's
first request to its last answer, of what the account lets through in that time. *paid twice*: images that the
synchronous API had begun for the worker that was killed. Its shard is taken over once it has been silent for
six seconds, which is what that run lacks.
"""
IMAGES = 3600
PER_MINUTE = 1800
BURST = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run as the account saw it."""

    workers: str
    seconds: float
    requests: int
    rate_limited: int
    done: int
    twice: int

    def row(self) -> str:
        """The run as a row of the table."""
        share = IMAGES / self.seconds / (PER_MINUTE / 60)
        return (
            f"| {self.workers} | {self.seconds:.1f} | {share:.1%} | {self.rate_limited / self.requests:.2%}"
            f" | {self.done:,} | {self.twice} |"
        )


def run(shop: Workshop, postgres: PostgresServer, workers: int, *, kill: bool = False) -> Outcome:
    """One run of all images on a cluster of its own."""
    emulated = Emulator(Settings(latency_s=0.5, pictures="fast", per_minute=PER_MINUTE, burst=BURST))
    emulated.start()
    work = shop.round(emulated, "together", [f"machines {n}" for n in range(IMAGES)])
    work.environment["IMAGEMILL_STORE_PASSWORD"] = PASSWORD
    environment = {
        **shop.s3.environment,
        "PREFECT_API_URL": shop.prefect_url,
        "IMAGEMILL_STORE_PASSWORD": PASSWORD,
        "TOGETHER_API_KEY": "benchmark",
    }
    try:
        with Cluster(work.home / "cluster", workers, **environment) as cluster:
            process = work.start(
                store=url_of(postgres),
                **{
                    "task-runner": "dask",
                    "scheduler": cluster.address,
                    "shard-size": "100",
                    "max-images-per-minute": str(PER_MINUTE),
                },
            )
            if kill:
                wait_for(lambda: emulated.bill()["images"] >= IMAGES // 2, process)
                cluster.workers[0].send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=600)
        if process.returncode:
            sys.exit(err)
        stats, bill = emulated.stats(), emulated.bill()
    finally:
        emulated.stop()
    return Outcome(
        f"{workers}, one killed half way" if kill else str(workers),
        stats["last_answer_at"] - stats["first_request_at"],
        stats["generation_requests"],
        stats["rate_limited"],
        json.loads(out)["done"],
        sum(line["count"] - 1 for line in bill["by_key"].values()),
    )


def main() -> None:
    """Run with one to four workers, and once with three of which one dies."""
    lines = [
        f"{machine()}; {IMAGES:,} images a run, {PER_MINUTE:,} requests a minute in a bucket of {BURST}",
        "",
        "| workers | seconds | share of the rate | 429s | images done | paid twice |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with workshop() as shop, PostgresServer() as postgres:
        for workers in (1, 2, 3, 4):
            lines.append(run(shop, postgres, workers).row())
            print(lines[-1], flush=True)
        lines.append(run(shop, postgres, 3, kill=True).row())
        print(lines[-1], flush=True)
    FILE.write_text(
        "\n".join(["# Several machines", "", "`python -m benchmarks.several_machines`", "", *lines, ""])
    )


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    main()
