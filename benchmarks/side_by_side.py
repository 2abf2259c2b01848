"""Runs a contender in a situation, and looks at it from outside: statistics, bill and bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.process_tree import ProcessTree
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[1]
BUCKET = "benchmark"
LATENCY_S = 0.5
_PAST_HALF = 12
"""Images after the half at the kill, so that it does not fall where a chunk of 25 ends."""
LONGEST_S = 900.0
"""No run takes longer than this, in seconds."""


@dataclass(frozen=True)
class Contender:
    """One row of the table. ``installs`` come from PyPI into an environment of their own.

    ``at_once`` is a number of requests, or ``auto``; ``put_with`` the client for S3, where it has a choice.
    """

    name: str
    label: str
    at_once: str
    installs: tuple[str, ...] = ()
    put_with: str = "boto3"

    def command(self, python: str, told: dict[str, str]) -> list[str]:
        """What is started, and started again."""
        if self.name != "imagemill":
            return [python, "-m", f"benchmarks.contenders.{self.name}"]
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


def run(
    contender: Contender, situation: Situation, python: str, s3: S3Server, prefect_url: str, folder: Path
) -> Outcome:
    """One contender in one situation."""
    prefix = f"{contender.name}-{contender.put_with}-{situation.name}"
    home = folder / prefix
    home.mkdir()
    catalog = folder / f"{situation.images}.parquet"
    if not catalog.exists():
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
    print(outcome, file=sys.stderr, flush=True)
    return outcome


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


def wait_until_quiet() -> None:
    """Let what the last run left to the servers be done, so that the next one does not pay for it."""
    for _ in range(60):
        before = _idle_ticks()
        time.sleep(1)
        if _idle_ticks() - before >= 0.9 * (os.cpu_count() or 1) * os.sysconf("SC_CLK_TCK"):
            return


def _idle_ticks() -> int:
    return int(Path("/proc/stat").read_text().split()[4])
