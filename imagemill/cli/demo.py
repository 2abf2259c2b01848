"""The demo: a run on this machine, against an emulated API and an emulated S3 server, at no cost."""

from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.cli.child_process import ended_afterwards
from imagemill.cli.exit_codes import DONE, FAILURES, STOPPED
from imagemill.cli.terminal import complain, say, show_summary, stderr
from imagemill.errors import InputError
from imagemill.formatting import money
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.settings import (
    ApiSettings,
    CatalogSettings,
    ExecutionSettings,
    OutputSettings,
    PictureSettings,
)

_BUCKET = "demo"
_KEYS = {
    "FAL_KEY": "demo-key",
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_ACCOUNT = (  # with a hidden limit of 24 concurrent requests, and a few faults
    *("--max-concurrent", "24", "--latency", "0.5"),
    *("--fault", "500=0.01", "--fault", "truncated=0.005"),
)
_SUBJECTS = (
    "a lighthouse", "a red fox", "an old bicycle", "a bowl of ramen", "a hot-air balloon", "a tea house",
    "a glass greenhouse", "a sailing boat", "a stack of books", "a mountain hut", "an owl", "a tram",
)  # fmt: skip
_PLACES = (
    "in the fog", "at dawn", "under falling snow", "by the sea", "in a quiet street", "on a hill",
    "in tall grass", "at night, lit by lanterns",
)  # fmt: skip
_STYLES = ("watercolour", "product photo", "woodcut", "film still", "paper collage")


def demo(folder: Path, *, images: int, as_json: bool) -> int:
    """Run the demo and leave catalog, pictures, records and report in ``folder``; the exit code."""
    if not 10 <= images <= 10_000:
        raise InputError(f"--images {images} is not between 10 and 10,000.")
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sample_catalog(folder / "catalog.parquet", images)
    except OSError as error:
        raise InputError(f"Cannot write to the folder {folder} ({error.strerror}).") from error
    stderr.print("Starting an emulated image API, an emulated S3 server and Prefect …")
    with (
        tempfile.TemporaryDirectory(prefix="imagemill-demo-") as work,
        _server("imagemill.emulator.s3", "--bucket", _BUCKET, log=Path(work) / "s3.log") as s3,
        _server("imagemill.emulator", *_ACCOUNT, log=Path(work) / "api.log") as api,
        _environment({**_KEYS, "IMAGEMILL_HOME": work}),
    ):
        # Imported while the servers start.
        from imagemill.cli.running import run
        from imagemill.flows.generate_catalog import generate_catalog

        base_url, s3_url = _address(api), _address(s3)
        outcome = run(
            lambda: generate_catalog(
                catalog=CatalogSettings(path=str(folder / "catalog.parquet")),
                api=ApiSettings(provider="fal", base_url=base_url),
                output=OutputSettings(uri=f"s3://{_BUCKET}/demo", s3_endpoint_url=s3_url),
                picture=PictureSettings(width=512, height=512, format="jpeg"),
                execution=ExecutionSettings(shard_size=50),
            )
        )
        summary = outcome.summary if isinstance(outcome, RunStoppedError) else outcome
        bill = _bill(base_url)
        _keep(s3_url, folder, summary)
    if as_json:
        print(summary.model_dump_json())
    else:
        show_summary(summary, places=False)
        say(f"\nThe emulated API charged: {bill['images']:,} images, {money(float(bill['usd']))}.")
        say("The results are here:")
        say(f"  report    {folder / 'report.html'}")
        say(f"  pictures  {folder / 'images'}")
        say(f"  manifest  {folder / 'manifest.parquet'}")
        say(f"  records   {folder / 'records'}")
        _show_next(folder / "catalog.parquet")
    if isinstance(outcome, RunStoppedError):
        complain(str(summary.stopped))
        return STOPPED
    return FAILURES if summary.failed else DONE


def sample_catalog(path: Path, rows: int) -> None:
    """Write a catalog of ``rows`` rows, of which one in eight is a duplicate and a few are unusable."""
    rng = random.Random(7)
    prompts = [", ".join(p) for p in itertools.product(_SUBJECTS, _PLACES, _STYLES)]
    rng.shuffle(prompts)
    chosen = [f"{prompts[n % len(prompts)]}" for n in range(rows)]
    for n in range(7, rows, 8):
        chosen[n] = chosen[n - rng.randrange(1, 7)]
    widths: list[int | None] = [None] * rows
    chosen[3], widths[5], chosen[rows - 1] = "   ", 20_000, ""
    table = pa.table(
        {
            "id": [f"sku-{n:05}" for n in range(rows)],
            "prompt": chosen,
            "width": pa.array(widths, pa.int32()),
            "collection": [("spring", "summer", "autumn")[n % 3] for n in range(rows)],
        }
    )
    pq.write_table(table, path)


def _show_next(catalog: Path) -> None:
    """Say what to type for the same pictures from a real API."""
    called = _called()
    say("\nTo do this with a real API, set TOGETHER_API_KEY and your S3 credentials, and run:")
    for arguments in (
        "check --provider together --output s3://YOUR-BUCKET/first",
        f"estimate {catalog} --provider together",
        f"run {catalog} --provider together --output s3://YOUR-BUCKET/first --limit 20",
    ):
        say(f"  {called} {arguments}")


def _called() -> str:
    """How the command is called where it was not installed, but run by uvx or pipx."""
    parts = Path(sys.prefix).parts
    if "archive-v0" in parts:  # an environment in uv's cache
        return "uvx imagemill"
    return "pipx run imagemill" if "pipx" in parts and "venvs" not in parts else "imagemill"


@contextmanager
def _server(module: str, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An emulated server on a free port of loopback while the block runs, as a process of its own."""
    command = [sys.executable, "-m", module, "--port", "0", *arguments]
    with log.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - this Python, this package
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
        )
    with process, ended_afterwards(process, 10):
        yield process


def _address(server: subprocess.Popen[bytes]) -> str:
    """Wait until the server says its address, which is its first word."""
    said = server.stdout.readline().decode().split() if server.stdout else []
    if not said:
        raise InputError(f"The demo's server did not start: {shlex.join(map(str, server.args))}.")  # type: ignore[arg-type]
    return said[0]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _bill(base_url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{base_url}/__bill") as answer:  # noqa: S310 - our own emulator
        bill: dict[str, float] = json.load(answer)
        return bill


def _keep(s3_url: str, folder: Path, summary: RunSummary) -> None:
    """Copy the bucket's objects to the folder, because the S3 server ends with the demo."""
    client: Any = boto3.client("s3", endpoint_url=s3_url)
    run_prefix = f"demo/runs/{summary.run_id}/"

    def place(key: str) -> Path | None:
        if key == f"{run_prefix}report.html":
            return folder / "report.html"
        if key.startswith(run_prefix):
            return folder / "records" / key.removeprefix(run_prefix)
        if key.startswith("demo/images/"):
            return folder / "images" / Path(key).name
        return folder / Path(key).name if key == "demo/manifest.parquet" else None

    for old in ("images", "records"):
        shutil.rmtree(folder / old, ignore_errors=True)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET)
    wanted = {item["Key"]: place(item["Key"]) for page in pages for item in page.get("Contents", [])}
    targets = {key: path for key, path in wanted.items() if path is not None}
    for path in targets.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: client.download_file(_BUCKET, item[0], str(item[1])), targets.items()))
    client.close()
