"""Runs a contender in a situation, and looks at it from outside: statistics, bill and bucket."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.process_tree import ProcessTree
from benchmarks.recording import Figures
from tests.s3_server import S3Server, s3_server

ROOT = Path(__file__).parents[1]
BUCKET = "benchmark"
LATENCY_S = 0.5
_PAST_HALF = 12
"""Images after the half at the kill, so that it does not fall where a chunk of 25 ends."""
LONGEST_S = 900.0
"""No run takes longer than this, in seconds."""
_IMAGES_A_SERVER = 15_000
"""So many images are kept before the S3 server begins anew: some 5 GB."""


@dataclass(frozen=True)
class Contender:
    """One row of the table. ``installs`` come from PyPI into an environment of their own.

    ``at_once`` is a number of requests, or ``auto``; ``put_with`` the client for S3, where it has a choice;
    ``script`` the module in ``contenders``, where it is not the name.
    """

    name: str
    label: str
    at_once: str
    installs: tuple[str, ...] = ()
    put_with: str = "boto3"
    script: str = ""

    def command(self, python: str, told: dict[str, str]) -> list[str]:
        """What is started, and started again."""
        if self.name != "imagemill":
            return [python, "-m", f"benchmarks.contenders.{self.script or self.name}"]
        return [
            *(python, "-m", "imagemill", "run", told["CATALOG"], "--provider", "together"),
            *("--base-url", told["API_URL"], "--s3-endpoint-url", told["S3_URL"]),
            *("--output", f"s3://{BUCKET}/{told['PREFIX']}", "--format", "jpeg"),
            *("--run-id", told["PREFIX"], "--concurrency", self.at_once, "--json"),
        ]


@dataclass(frozen=True)
class Situation:
    """What all contenders meet. ``kill``: soon after half of the images were answered; then start again."""

    name: str
    images: int
    max_concurrent: int | None = None
    latency_s: float = LATENCY_S
    kill: bool = False


@dataclass
class Outcome:
    """A run seen from outside.

    ``working_s`` goes from the API's first request to its last answer, ``wall_s`` from the command's start
    to its end. ``missing`` are rows without an image in the bucket; ``twice`` images charged beyond one
    a row.
    """

    contender: str
    situation: str
    images: int
    missing: int
    twice: int
    requests: int
    refused: int
    in_flight: int
    working_s: float
    wall_s: float
    cpu_s: float
    peak_mb: float
    codes: list[int | None] = field(default_factory=list)


class EmulatedApi:
    """The emulator as a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url)

    def stats(self) -> dict[str, Any]:
        """Its statistics."""
        found: dict[str, Any] = self._http.get("/__stats").json()
        return found

    def answered(self) -> int:
        """Images answered so far."""
        return sum(outcomes.get("200", 0) for outcomes in self.stats()["requests"].values())

    def bill(self) -> dict[str, int]:
        """Images charged, by prompt."""
        counts: dict[str, int] = {}
        for line in self._http.get("/__bill").json()["by_key"].values():
            counts[line["prompt"]] = counts.get(line["prompt"], 0) + line["count"]
        return counts

    def settle(self) -> int:
        """Wait until nothing is in flight; how much was."""
        first = in_flight = self.stats()["in_flight"]
        while in_flight:
            time.sleep(0.05)
            in_flight = self.stats()["in_flight"]
        return int(first)


@contextmanager
def emulated_api(situation: Situation) -> Iterator[EmulatedApi]:
    """An account of its own for each run."""
    limit = ["--max-concurrent", str(situation.max_concurrent)] if situation.max_concurrent else []
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "imagemill.emulator", "--port", "0", "--pictures", "fast"),
            *("--latency", str(situation.latency_s), *limit),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        yield EmulatedApi(process.stdout.readline().split()[0])
    finally:
        process.terminate()
        process.wait()


def write_catalog(path: Path, images: int) -> None:
    """``images`` rows, no two alike: id, prompt, seed."""
    numbers = range(images)
    prompts = [f"Product photo {n}: a ceramic vase on a walnut table, soft morning light" for n in numbers]
    pq.write_table(
        pa.table({"id": [f"row-{n:06}" for n in numbers], "prompt": prompts, "seed": numbers}), path
    )


def names_in_bucket(s3: S3Server, prefix: str) -> set[str]:
    """The objects below a prefix that are not empty."""
    client = s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
    names = {
        item["Key"].removeprefix(f"{prefix}/")
        for page in pages
        for item in page.get("Contents", [])
        if item["Size"]
    }
    client.close()
    return names


def missing_rows(s3: S3Server, prefix: str, catalog: Path) -> int:
    """Rows of the catalog whose image is not in the bucket; a manifest says where, or the row's own name."""
    names = names_in_bucket(s3, prefix)
    ids = pq.read_table(catalog, columns=["id"])["id"].to_pylist()
    image_of = {row_id: f"{row_id}.jpg" for row_id in ids}
    if "manifest.parquet" in names:
        client = s3.client()
        body = client.get_object(Bucket=BUCKET, Key=f"{prefix}/manifest.parquet")["Body"].read()
        client.close()
        for row in pq.read_table(pa.BufferReader(body)).to_pylist():
            image_of[row["id"]] = (row["uri"] or "").removeprefix(f"s3://{BUCKET}/{prefix}/")
    return sum(image not in names for image in image_of.values())


class Servers:
    """An S3 server for many runs, which begins anew before the disk is full, and a folder for each run."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._images = _IMAGES_A_SERVER
        self._numbers = itertools.count()
        self._s3: S3Server | None = None
        self._folder = Path()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the server and delete what it holds."""
        self._stack.close()

    def for_run(self, images: int) -> tuple[S3Server, Path]:
        """The server and a new, empty folder for a run of so many images."""
        if self._s3 is None or self._images + images > _IMAGES_A_SERVER:
            self._stack.close()
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._s3 = self._stack.enter_context(s3_server(self._folder))
            self._s3.client().create_bucket(Bucket=BUCKET)
            self._images = 0
        self._images += images
        folder = self._folder / f"run-{next(self._numbers)}"
        folder.mkdir()
        return self._s3, folder


def run(
    contender: Contender, situation: Situation, python: str, servers: Servers, prefect_url: str
) -> Figures:
    """One contender in one situation: an :class:`Outcome`, as a dictionary."""
    s3, home = servers.for_run(situation.images)
    prefix = home.name
    catalog = home / "catalog.parquet"
    write_catalog(catalog, situation.images)
    with emulated_api(situation) as api, (home / "output.log").open("wb") as output:
        told = {
            "API_URL": api.url,
            "S3_URL": s3.endpoint_url,
            "BUCKET": BUCKET,
            "PREFIX": prefix,
            "CATALOG": str(catalog),
            "AT_ONCE": contender.at_once,
            "PUT_WITH": contender.put_with,
        }
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            **s3.environment,
            **told,
            "IMAGEMILL_HOME": str(home),
            "TOGETHER_API_KEY": "benchmark",
            "PREFECT_API_URL": prefect_url,
            "PYTHONPATH": str(ROOT),
        }
        codes, cpu_s, peak_mb, in_flight = [], 0.0, 0.0, 0
        began = time.monotonic()
        for time_to_kill in (True, False) if situation.kill else (False,):
            command = contender.command(python, told)
            with ProcessTree(command, environment=environment, cwd=ROOT, output=output) as tree:
                until = time.monotonic() + LONGEST_S
                while (code := tree.wait(0.1)) is None and time.monotonic() < until:
                    if time_to_kill and api.answered() >= situation.images // 2 + _PAST_HALF:
                        break
                tree.kill()
            in_flight += api.settle() if time_to_kill else 0
            codes.append(code)
            cpu_s += tree.cpu_s
            peak_mb = max(peak_mb, tree.peak_mb)
        wall_s = time.monotonic() - began
        stats, bill = api.stats(), api.bill()
    outcome = Outcome(
        contender=contender.name,
        situation=situation.name,
        images=situation.images,
        missing=missing_rows(s3, prefix, catalog),
        twice=sum(count - 1 for count in bill.values()),
        requests=stats["generation_requests"],
        refused=stats["rate_limited"],
        in_flight=in_flight,
        working_s=(stats["last_answer_at"] or 0) - (stats["first_request_at"] or 0),
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_mb=peak_mb,
        codes=codes,
    )
    if codes[-1] != 0:
        print("".join((home / "output.log").read_text().splitlines(keepends=True)[-15:]), file=sys.stderr)
    return asdict(outcome)


def python_of(contender: Contender, environments: Path) -> str:
    """The interpreter that a contender runs with: ours, or that of an environment made for it."""
    if not contender.installs:
        return sys.executable
    python = environments / contender.name / "bin" / "python"
    if not python.exists():
        print(f"installing {' '.join(contender.installs)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *contender.installs]
        subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    return str(python)
