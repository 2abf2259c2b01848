"""Measures the main job beside a bare loop that only moves the bytes; prints a Markdown table.

    python benchmarks/main_job.py [IMAGES]

Every row is a process of its own, against the same emulated API (no latency, no limit, 1024 x 1024 JPEG)
and the same local S3 server. CPU is the client process's own, without its imports and without Prefect's
server; memory is the process's peak. ``bare`` is httpx plus boto3's put_object, 25 at once, with no queue,
no checks and no records.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config
from prefect.testing.utilities import prefect_test_harness

from imagemill.cli.s3_server import s3_server

ROOT = Path(__file__).parents[1]
AT_ONCE = 25
BUCKET = "benchmark"


def used() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def report(images: int, began: float, cpu: float) -> None:
    """Print this process's figures for its parent."""
    print(
        json.dumps(
            {
                "images": images,
                "seconds": time.perf_counter() - began,
                "cpu": used() - cpu,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def bare(images: int) -> None:
    """The floor: one request, one put, nothing else."""
    s3 = boto3.client(
        "s3",
        endpoint_url=os.environ["S3_URL"],
        config=Config(max_pool_connections=AT_ONCE, s3={"addressing_style": "path"}),
    )
    threads = ThreadPoolExecutor(AT_ONCE)
    headers = {"authorization": "Bearer benchmark"}

    async def worker(numbers: list[int], http: httpx.AsyncClient) -> None:
        loop = asyncio.get_running_loop()
        while numbers:
            number = numbers.pop()
            body = {
                "model": "black-forest-labs/FLUX.1-schnell",
                "prompt": f"benchmark {number}",
                "width": 1024,
                "height": 1024,
                "steps": 4,
                "seed": number,
                "response_format": "base64",
                "output_format": "jpeg",
            }
            url = f"{os.environ['API_URL']}/v1/images/generations"
            answer = await http.post(url, json=body, headers=headers)
            content = base64.b64decode(answer.json()["data"][0]["b64_json"])
            await loop.run_in_executor(
                threads,
                lambda content=content, number=number: s3.put_object(
                    Bucket=BUCKET, Key=f"bare/{number}.jpg", Body=content, ContentType="image/jpeg"
                ),
            )

    async def run() -> None:
        numbers = list(range(images))
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        async with httpx.AsyncClient(limits=limits, timeout=60) as http:
            await asyncio.gather(*[worker(numbers, http) for _ in range(AT_ONCE)])

    began, cpu = time.perf_counter(), used()
    asyncio.run(run())
    report(images, began, cpu)


def imagemill(images: int) -> None:
    """The whole flow: plan, generate, publish, measure."""
    from imagemill.flows.generate_catalog import generate_catalog  # noqa: PLC0415 - imports are not measured

    folder = Path(os.environ["IMAGEMILL_HOME"])
    catalog = folder / f"catalog-{images}.parquet"
    pq.write_table(pa.table({"prompt": [f"benchmark {n}" for n in range(images)]}), catalog)
    began, cpu = time.perf_counter(), used()
    summary = generate_catalog(
        catalog=str(catalog),
        output={"uri": f"s3://{BUCKET}/mill-{images}", "s3_endpoint_url": os.environ["S3_URL"]},
        api={"provider": "together", "base_url": os.environ["API_URL"]},
        picture={"format": "jpeg"},
        limits={"concurrency": AT_ONCE},
    )
    assert (summary.done, summary.failed) == (images, 0), summary
    report(images, began, cpu)


def measured(what: str, images: int, environment: dict[str, str]) -> dict[str, float]:
    """Run one row of the table as a process of its own; its figures."""
    done = subprocess.run(
        [sys.executable, __file__, what, str(images)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(images: int) -> None:
    """Start the servers, run each row, print the table."""
    with (
        tempfile.TemporaryDirectory() as work,
        s3_server(Path(work)) as s3,
        prefect_test_harness(server_startup_timeout=180),
    ):
        client = s3.client()
        client.create_bucket(Bucket=BUCKET)
        from prefect.settings import get_current_settings  # noqa: PLC0415 - known within the harness

        emulator = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "imagemill.emulator",
                "--port",
                "0",
                "--latency",
                "0",
                "--pictures",
                "fast",
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert emulator.stdout is not None
        api = next(word for word in emulator.stdout.readline().split() if word.startswith("http://"))
        environment = {
            **os.environ,
            **s3.environment,
            "S3_URL": s3.endpoint_url,
            "API_URL": api.rstrip(".,"),
            "TOGETHER_API_KEY": "benchmark",
            "IMAGEMILL_HOME": work,
            "PREFECT_API_URL": str(get_current_settings().api.url),
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        }
        try:
            measured("bare", 200, environment)  # warms the servers
            rows = [
                ("bare httpx + boto3", measured("bare", images, environment)),
                ("imagemill", measured("imagemill", images // 10, environment)),
                ("imagemill", measured("imagemill", images, environment)),
            ]
        finally:
            emulator.terminate()
            emulator.wait()
    floor = rows[0][1]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | images | images/s | client CPU ms/image | times bare | peak memory MB |")
    print("|---|---|---|---|---|---|")
    for what, row in rows:
        cpu = 1000 * row["cpu"] / row["images"]
        times = cpu / (1000 * floor["cpu"] / floor["images"])
        print(
            f"| {what} | {row['images']:,} | {row['images'] / row['seconds']:.0f} | {cpu:.2f}"
            f" | {times:.2f} | {row['rss_mb']:.0f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"bare": bare, "imagemill": imagemill}[sys.argv[1]](int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
