"""What it costs to keep a run's log in the bucket while it goes on; prints a Markdown table.

    python -m benchmarks.log_parts [SECONDS]

A session as ``imagemill run`` opens it writes the log of a run at a steady pace to a local S3 server, for
half a minute by default. Counted are the objects there at the end and the bytes that were sent.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import anyio
import anyio.to_thread

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.engine.job_log import JobLog
from imagemill.jobs import Job
from imagemill.runs.folder import RunFolder
from imagemill.runs.log_parts import SEND_EVERY_S, LeaderLog
from tests.s3_server import s3_server

PUT_USD = 0.005 / 1000
"""What S3 charges for a request that writes, in us-east-1."""


class CountedBucket(ImageBucket):
    """Counts what is written."""

    puts = 0
    sent_bytes = 0

    def write(self, name: str, content: bytes, media_type: str) -> None:
        """Write an object, and count it."""
        super().write(name, content, media_type)
        self.puts += 1
        self.sent_bytes += len(content)


async def run(parts: LeaderLog, log: JobLog, per_minute: int, seconds: float) -> float:
    """Log a run at this pace; the CPU seconds that the uploads took."""
    job = Job(0, "sku-00001", "0" * 40, "a prompt", None, 1024, 1024, 1, 4, "fal-ai/flux/schnell", "png")
    job.request_id = "764cabcf-b745-4b3e-ae38-1200304cf45b"
    cpu_s, paid, deadline = 0.0, {"cost_usd": 0.003, "unanswered": 0}, time.monotonic() + seconds
    begun = sent = time.monotonic()
    written = 0
    while (now := time.monotonic()) < deadline:
        while written < (now - begun) * per_minute / 60:
            job.number = written
            log.job("sent", job)
            log.job("accepted", job, **paid)
            log.job("done", job, quality='{"sharpness":0.5,"contrast":0.25}', **paid)
            written += 1
        if now - sent >= SEND_EVERY_S:
            sent, before = now, time.process_time()
            await parts.send()
            cpu_s += time.process_time() - before
        await anyio.sleep(0.1)
    return cpu_s


def main(seconds: float) -> None:
    """Print the table."""
    print("| images a minute | puts a minute | objects a minute | KB a minute | USD an hour | CPU |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home, s3_server(Path(home) / "s3") as server:
        os.environ |= {**server.environment, "IMAGEMILL_HOME": home}
        client = server.client()
        client.create_bucket(Bucket="bench")
        for per_minute in (20, 200, 2_000, 10_000):
            bucket = CountedBucket("s3://bench/out", endpoint_url=server.endpoint_url)
            folder = RunFolder(f"at-{per_minute}")
            folder.create()
            parts = LeaderLog(bucket, folder)
            parts.is_open = True
            log = JobLog(folder.run_id, folder.log)
            cpu_s = anyio.run(run, parts, log, per_minute, seconds)
            log.close()
            objects = len(bucket.objects(f"runs/{folder.run_id}/parts"))
            minutes = seconds / 60
            puts = bucket.puts / minutes
            print(
                f"| {per_minute:,} | {puts:.0f} | {objects / minutes:.0f}"
                f" | {bucket.sent_bytes / 1000 / minutes:,.0f} | {puts * 60 * PUT_USD:.4f}"
                f" | {cpu_s / seconds:.2%} |",
                flush=True,
            )
            bucket.close()
        client.close()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
