"""Runs the whole flow with ``auto`` before the emulated API with hidden limits; prints a Markdown table.

    python -m benchmarks.pacer_emulator

Real sockets, 2,000 images a run, median latency 0.5 s, an OpenAI-compatible server. The account is ``new``,
``known`` from the run before, or its limit was ``told``. ``delivered`` compares the time from the first
image's request to the last image's arrival with what the limit allows.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.emulator_process import EmulatorProcess, emulator_process
from imagemill.emulator import Settings
from imagemill.flows.generate_catalog import generate_catalog
from tests.s3_server import s3_server

IMAGES = 2000
MEAN_LATENCY_S = 0.5 * math.exp(0.35**2 / 2)
CASES: dict[str, tuple[dict[str, object], dict[str, object] | None]] = {
    "10 at once": ({"max_concurrent": 10}, None),
    "30 at once": ({"max_concurrent": 30}, None),
    "50 at once": ({"max_concurrent": 50}, None),
    "1,800 a minute, bucket 5": ({"per_minute": 1800, "burst": 5}, None),
    "20 at once and 3,000 a minute, bucket 5": ({"max_concurrent": 20, "per_minute": 3000, "burst": 5}, None),
    "40 at once, after 20 s 20": ({"max_concurrent": 40}, {"max_concurrent": 20}),
}
AGAIN = ("30 at once", "50 at once", "1,800 a minute, bucket 5")
"""Limits of which a second run at the same account is measured too, which knows what the first one found."""
TOLD = ("30 at once", "50 at once")
"""Limits of which a run that is told the number is measured too."""
CHANGED_AT_S = 20.0


def allowed(limits: dict[str, object]) -> float:
    """Images a second."""
    by_number = float(limits.get("max_concurrent") or math.inf) / MEAN_LATENCY_S  # type: ignore[arg-type]
    return min(by_number, float(limits.get("per_minute") or math.inf) / 60)  # type: ignore[arg-type]


def change(emulated: EmulatorProcess, later: dict[str, object] | None, ended: threading.Event) -> None:
    """Change the limits, so many seconds after the first request."""
    began = None
    while later and not ended.wait(0.05):
        if began is None and emulated.stats()["generation_requests"]:
            began = time.monotonic()
        if began is not None and time.monotonic() - began >= CHANGED_AT_S:
            emulated.configure(**later)
            return


def main() -> None:
    """Run every case."""
    print("| hidden limit | account | delivered | 429s | failed | wall s |\n|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory() as work,
        s3_server(Path(work)) as s3,
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        s3.client().create_bucket(Bucket="pacer")
        os.environ.update(s3.environment, IMAGEMILL_HOME=work, OPENAI_API_KEY="benchmark")
        catalog = Path(work) / "catalog.parquet"
        pq.write_table(pa.table({"prompt": [f"pacer {n}" for n in range(IMAGES)]}), catalog)
        numbers = itertools.count()
        for name, (limits, later) in CASES.items():
            settings = Settings(latency_s=0.5, pictures="fast", **limits)  # type: ignore[arg-type]
            with emulator_process(settings) as emulated:
                ways = ["new", *["known"] * (name in AGAIN), *["told"] * (name in TOLD)]
                for way in ways:
                    ended = threading.Event()
                    watcher = threading.Thread(target=change, args=(emulated, later, ended))
                    watcher.start()
                    summary = generate_catalog(
                        catalog=str(catalog),
                        output={"uri": f"s3://pacer/{next(numbers)}", "s3_endpoint_url": s3.endpoint_url},
                        api={
                            "provider": "openai",
                            "base_url": f"{emulated.base_url}/v1",
                            "usd_per_image": 0.001,
                        },
                        picture={"width": 256, "height": 256},
                        limits={"concurrency": limits["max_concurrent"] if way == "told" else "auto"},
                    )
                    ended.set()
                    watcher.join()
                    seconds = 60 * summary.generated / summary.images_per_minute
                    first = min(seconds, CHANGED_AT_S) if later else seconds
                    possible = allowed(limits) * first + (allowed(later) * (seconds - first) if later else 0)
                    print(
                        f"| {name} | {way} | {summary.generated / possible:.1%} |"
                        f" {summary.rate_limited / summary.requests:.2%}"
                        f" | {summary.failed} | {summary.wall_s:.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
