"""Runs the whole flow with ``auto`` before the emulated API with hidden limits; writes a table into pacer.md.

    python -m benchmarks.pacer_emulator

Real sockets, 2,000 images a run, median latency 0.5 s, an OpenAI-compatible server. The account is ``new``,
``known`` from the run before, or its limit was ``told``. ``delivered`` compares the time from the first
image's request to the last image's arrival with what the limit allows.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.emulator_process import EmulatorProcess, emulator_process
from benchmarks.recording import Figures, Run, Spread, options, record
from benchmarks.workshop import machine
from imagemill.emulator import Settings
from imagemill.flows.generate_catalog import generate_catalog
from tests.s3_server import S3Server, s3_server

FILE = Path(__file__).with_name("pacer.md")
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


def ways(name: str) -> list[str]:
    """What the runs before this limit know of it."""
    return ["new", *["known"] * (name in AGAIN), *["told"] * (name in TOLD)]


def measure(name: str, s3: S3Server, catalog: Path, numbers: Iterator[int]) -> Figures:
    """The runs before one limit, one after the other: an emulator of its own is a new account."""
    limits, later = CASES[name]
    settings = Settings(latency_s=0.5, pictures="fast", **limits)  # type: ignore[arg-type]
    figures: Figures = {}
    with emulator_process(settings) as emulated:
        for way in ways(name):
            ended = threading.Event()
            watcher = threading.Thread(target=change, args=(emulated, later, ended))
            watcher.start()
            summary = generate_catalog(
                catalog=str(catalog),
                output={"uri": f"s3://pacer/{next(numbers)}", "s3_endpoint_url": s3.endpoint_url},
                api={"provider": "openai", "base_url": f"{emulated.base_url}/v1", "usd_per_image": 0.001},
                picture={"width": 256, "height": 256},
                limits={"concurrency": limits["max_concurrent"] if way == "told" else "auto"},
            )
            ended.set()
            watcher.join()
            seconds = 60 * summary.generated / summary.images_per_minute
            first = min(seconds, CHANGED_AT_S) if later else seconds
            possible = allowed(limits) * first + (allowed(later) * (seconds - first) if later else 0)
            figures[way] = {
                "delivered": summary.generated / possible,
                "refused": summary.rate_limited / summary.requests,
                "failed": summary.failed,
                "wall": summary.wall_s,
            }
    return figures


def table(found: Mapping[str, list[Figures]]) -> str:
    """The table."""
    lines = [
        f"{machine()}; {min(map(len, found.values()))} rounds: the median, and the least and the most.\n",
        "| hidden limit | account | delivered | 429s | failed | wall s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    forms = {"delivered": ".1%", "refused": ".2%", "failed": ".0f", "wall": ".0f"}
    for name, figures in found.items():
        for way in ways(name):
            cells = [
                Spread.of([each[way][what] for each in figures]).text(form) for what, form in forms.items()
            ]
            lines.append(f"| {name} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run every case, in rounds that alternate. A round takes nine minutes: the page needs two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=50)
    arguments = parser.parse_args()
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
        runs = [Run(name, partial(measure, name, s3, catalog, numbers), 2) for name in CASES]
        return record(FILE, runs, table, arguments, sizes=[IMAGES])


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
