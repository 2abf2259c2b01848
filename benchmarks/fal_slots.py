"""Runs a catalog at a new fal account, on real sockets: how much of its slots a whole run uses.

    python -m benchmarks.fal_slots [CATALOG]

CATALOG is a Parquet file with a column ``prompt``, such as PartiPrompts (1,632 rows, published by Google
Research); without one, as many made-up prompts. Emulated fal queues as fal documents it: 2 images at once for
a new account, all other requests wait. *Used* compares the time from the first submit to the end of the last
image, by fal's own list of requests, with the time that the same images take if all were submitted at once.
"""

from __future__ import annotations

import heapq
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.emulator_process import EmulatorProcess, emulator_process
from imagemill.emulator import Settings
from imagemill.flows.generate_catalog import generate_catalog
from tests.s3_server import s3_server

PARTI_PROMPTS = 1632
CASES = (
    (2, 0.5, PARTI_PROMPTS),
    *((slots, latency_s, 1000) for slots in (2, 10, 40) for latency_s in (0.5, 3.0)),
)
"""Slots, median latency in seconds, rows at most; two slots at 3 s take 25 minutes."""


def requests_of(emulated: EmulatorProcess) -> list[dict[str, Any]]:
    """All past requests, from the platform API."""
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"endpoint_id": "fal-ai/flux/schnell", "limit": 100}
    with httpx.Client(headers={"Authorization": "Key k"}) as http:
        while True:
            page = http.get(f"{emulated.base_url}/v1/models/requests/by-endpoint", params=query).json()
            found += page["items"]
            if not page["has_more"]:
                return found
            query["cursor"] = page["next_cursor"]


def used(requests: list[dict[str, Any]], slots: int) -> float:
    """What the same images take if all are in the queue from the first submit on, as a share of the run."""
    free_at = [0.0] * slots
    for item in sorted(requests, key=lambda item: str(item["started_at"])):
        heapq.heapreplace(free_at, free_at[0] + item["duration"])
    first = min(datetime.fromisoformat(item["sent_at"]) for item in requests)
    last = max(datetime.fromisoformat(item["ended_at"]) for item in requests)
    return max(free_at) / (last - first).total_seconds()


def main(catalog: str | None) -> None:
    """Run every case."""
    print("| slots | latency s | images | used | p95 latency s | p95 in the queue s | longest queue"
          " | failed | paid twice | wall s |\n" + "|---" * 10 + "|", flush=True)  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as work,
        s3_server(Path(work)) as s3,
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        s3.client().create_bucket(Bucket="slots")
        os.environ.update(s3.environment, IMAGEMILL_HOME=work, FAL_KEY="benchmark")
        if catalog is None:
            catalog = f"{work}/catalog.parquet"
            pq.write_table(pa.table({"prompt": [f"a lamp, {n}" for n in range(PARTI_PROMPTS)]}), catalog)
        for number, (slots, latency_s, rows) in enumerate(CASES):
            settings = Settings(latency_s=latency_s, max_concurrent=slots, pictures="fast")
            with emulator_process(settings) as emulated:
                summary = generate_catalog(
                    catalog={"path": catalog, "limit": rows},
                    output={"uri": f"s3://slots/{number}", "s3_endpoint_url": s3.endpoint_url},
                    api={"provider": "fal", "base_url": emulated.base_url},
                    picture={"width": 256, "height": 256},
                )
                requests = requests_of(emulated)
                print(
                    f"| {slots} | {latency_s:g} | {summary.done:,} | {used(requests, slots):.1%}"
                    f" | {summary.p95_latency_s:.2f} | {summary.p95_queued_s:.2f}"
                    f" | {longest_queue(requests)} | {summary.failed}"
                    f" | {emulated.bill()['images'] - summary.done} | {summary.wall_s:.0f} |",
                    flush=True,
                )


def longest_queue(requests: list[dict[str, Any]]) -> int:
    """The most requests that waited at once."""
    changes = sorted(
        (item[name], change) for item in requests for name, change in (("sent_at", 1), ("started_at", -1))
    )
    most = waiting = 0
    for _, change in changes:
        waiting += change
        most = max(most, waiting)
    return most


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
