"""What the benchmarks of kills and faults share: real servers, `imagemill` as a process, and the audit."""

from __future__ import annotations

import io
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.emulator_process import EmulatorProcess
from imagemill.emulator import Emulator
from tests.s3_server import S3Server, s3_server

Size = tuple[int, int]
"""Width and height in pixels."""

BUCKET = "benchmark"
ROUND_S = 180.0
"""No process takes longer than this, in seconds."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended: exit code, its one JSON object where it printed one, its complaints."""

    code: int
    summary: dict[str, Any]
    err: str


@dataclass(frozen=True, slots=True)
class Audit:
    """A run looked at from outside. ``twice`` counts images charged beyond one a job.

    ``lost`` jobs are done but have no image that decodes; ``wrong`` ones have no state or not a final one;
    ``in_flight`` of ``twice`` belong to a request that the run itself counts as never answered.
    """

    jobs: int
    done: int
    failed: int
    lost: int
    wrong: int
    twice: int
    in_flight: int


@dataclass
class Workshop:
    """An S3 server and a Prefect server that all rounds share."""

    folder: Path
    s3: S3Server
    prefect_url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def round(
        self,
        emulated: Emulator | EmulatorProcess,
        provider: str,
        prompts: list[str],
        *,
        sizes: Sequence[Size] = ((256, 256),),
        **more: str,
    ) -> Round:
        """A run of its own: catalog, prefix, home and run id. Each prompt is made in all of these sizes."""
        name = f"r{next(self._numbers)}"
        home = self.folder / name
        home.mkdir()
        asked = list(itertools.product(prompts, sizes))
        ids = [f"{prompt} {size}" if len(sizes) > 1 else prompt for prompt, size in asked]
        catalog = home / "catalog.parquet"
        columns = {"id": ids, "prompt": [prompt for prompt, _ in asked]}
        if len(sizes) > 1:
            columns |= {side: [size[n] for _, size in asked] for n, side in enumerate(("width", "height"))}
        pq.write_table(pa.table(columns), catalog)
        width, height = map(str, sizes[0])
        options = {"width": width, "height": height, **more}
        wanted = dict(zip(ids, asked, strict=True))
        return Round(self, name, home, str(catalog), emulated, provider, wanted, options)


@dataclass
class Round:
    """One run, which may be killed and resumed. ``options`` are further ones of the command.

    ``wanted`` has the prompt and the size of each job, by the id of its row.
    """

    workshop: Workshop
    name: str
    home: Path
    catalog: str
    emulated: Emulator | EmulatorProcess
    provider: str
    wanted: dict[str, tuple[str, Size]]
    options: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, **options: str) -> subprocess.Popen[str]:
        """Start or resume the run."""
        told = {
            "provider": self.provider,
            "base-url": self.emulated.base_url,
            "output": f"s3://{BUCKET}/{self.name}",
            "s3-endpoint-url": self.workshop.s3.endpoint_url,
            "run-id": self.name,
            **self.options,
            **options,
        }
        given = [part for name, value in told.items() for part in (f"--{name}", value)]
        return subprocess.Popen(
            [sys.executable, "-m", "imagemill", "run", self.catalog, *given, "--json"],
            env={
                **os.environ,
                **self.workshop.s3.environment,
                "IMAGEMILL_HOME": str(self.home),
                "PREFECT_API_URL": self.workshop.prefect_url,
                "TOGETHER_API_KEY": "benchmark",
                "FAL_KEY": "benchmark",
                "REPLICATE_API_TOKEN": "benchmark",
                "RUNWARE_API_KEY": "benchmark",
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str] | None = None) -> Ended:
        """Wait for a process of the run; without one, for a resume."""
        process = process or self.start()
        out, err = process.communicate(timeout=ROUND_S)
        return Ended(process.returncode, json.loads(out) if out.strip() else {}, err)

    def audit(self) -> Audit:
        """Compare jobs, bucket and bill."""
        client = self.workshop.s3.client()
        table = client.get_object(Bucket=BUCKET, Key=f"{self.name}/runs/{self.name}/jobs.parquet")
        jobs = pq.read_table(pa.BufferReader(table["Body"].read())).to_pylist()
        counts: Counter[tuple[str, Size]] = Counter()
        for line in self.emulated.bill()["by_key"].values():
            counts[line["prompt"], (line["width"], line["height"])] += line["count"]
        done = [job for job in jobs if job["status"] == "done"]
        failed = [job for job in jobs if job["status"] == "failed"]
        lost = 0
        for job in done:
            try:
                found = client.get_object(Bucket=BUCKET, Key=f"{self.name}/{job['image']}")
                with Image.open(io.BytesIO(found["Body"].read())) as image:
                    image.load()
                lost += image.size != self.wanted[job["id"]][1]
            except Exception:  # noqa: BLE001 - whatever it is, the image is not there
                lost += 1
        client.close()
        unanswered = {job["id"]: job["unanswered"] for job in jobs}
        twice = {name: counts[asked] - 1 for name, asked in self.wanted.items() if counts[asked] > 1}
        return Audit(
            jobs=len(jobs),
            done=len(done),
            failed=len(failed),
            lost=lost,
            wrong=len(self.wanted.keys() ^ {job["id"] for job in [*done, *failed]})
            + len(jobs)
            - len(unanswered),
            twice=sum(twice.values()),
            in_flight=sum(min(more, unanswered.get(name, 0)) for name, more in twice.items()),
        )

    def log(self) -> list[dict[str, Any]]:
        """The events of the run's log on this machine."""
        text = (self.home / "runs" / self.name / "log.jsonl").read_bytes()
        return [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait until a condition of the world outside holds; False where the process ended before."""
    until = time.monotonic() + ROUND_S
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.01)
    return True


def machine() -> str:
    """The machine that this runs on, in a line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB,"
        f" Python {platform.python_version()}"
    )


@contextmanager
def workshop() -> Iterator[Workshop]:
    """The servers, while the block runs."""
    with (
        tempfile.TemporaryDirectory() as work,
        s3_server(Path(work)) as s3,
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        client = s3.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield Workshop(Path(work), s3, str(get_current_settings().api.url))
