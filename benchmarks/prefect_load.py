"""A run of thousands of images on a default Prefect server, with a real worker: what it loses, and its end.

python benchmarks/prefect_load.py [IMAGES] > benchmarks/prefect_load.md
"""

from __future__ import annotations

import io
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from emulator import Emulator, Settings
from imagemill.s3_server import S3Server, s3_server
from tests.installation import Installation, installation

BUCKET = "load"
_PATIENCE_S = 900.0
_SETTLING_S = 60.0
"""How long the server may take to record the last events, in seconds."""


@dataclass(frozen=True, slots=True)
class Load:
    """A run as the server saw it. ``tail_s``: seconds from its last image to the end of its flow run."""

    state: str
    images: int
    seconds: float
    tail_s: float
    task_runs: int
    left_running: int
    dropped: int


def measure_load(folder: Path, s3: S3Server, images: int) -> Load:
    """Run ``images`` jobs through a deployment, a worker and a server of their own."""
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    prompts = [f"picture {n}" for n in range(images)]
    pq.write_table(pa.table({"prompt": prompts}), folder / "catalog.parquet")
    emulated = Emulator(Settings(latency_s=0.0, pictures="fast"))
    emulated.start()
    try:
        with installation(folder) as prefect:
            prefect.prefect("work-pool", "create", "--type", "process", "imagemill")
            prefect.prefect("deploy", "-n", "generate-catalog/on-demand")
            with prefect.worker(**s3.environment, TOGETHER_API_KEY="key"):
                flow_run = _run(prefect, folder, s3, emulated)
            task_runs = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
            running = {**task_runs, "task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
            deadline = time.monotonic() + _SETTLING_S
            while (left := _count(prefect, running)) and time.monotonic() < deadline:
                time.sleep(0.5)
            table = client.get_object(Bucket=BUCKET, Key="catalog/runs/load/jobs.parquet")["Body"].read()
            jobs = pq.read_table(io.BytesIO(table), columns=["status", "finished_at"])
            started, ended = (datetime.fromisoformat(flow_run[f"{when}_time"]) for when in ("start", "end"))
            return Load(
                state=flow_run["state_name"],
                images=jobs["status"].to_pylist().count("done"),
                seconds=(ended - started).total_seconds(),
                tail_s=(ended - max(jobs["finished_at"].to_pylist())).total_seconds(),
                task_runs=_count(prefect, task_runs),
                left_running=left,
                dropped=prefect.log("server").lower().count("queue is full"),
            )
    finally:
        emulated.stop()
        client.close()


def _run(prefect: Installation, folder: Path, s3: S3Server, emulated: Emulator) -> dict[str, Any]:
    found = httpx.get(f"{prefect.api}/deployments/name/generate-catalog/on-demand").raise_for_status().json()
    parameters = {
        "catalog": {"path": str(folder / "catalog.parquet")},
        "output": {"uri": f"s3://{BUCKET}/catalog", "s3_endpoint_url": s3.endpoint_url},
        "api": {"provider": "together", "base_url": emulated.base_url},
        "picture": {"width": 256, "height": 256, "format": "jpeg"},
        "execution": {"run_id": "load"},
    }
    where = f"{prefect.api}/deployments/{found['id']}/create_flow_run"
    flow_run: dict[str, Any] = httpx.post(where, json={"parameters": parameters}).raise_for_status().json()
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        flow_run = (
            httpx.get(f"{prefect.api}/flow_runs/{flow_run['id']}", timeout=60).raise_for_status().json()
        )
        if flow_run["end_time"]:
            return flow_run
        time.sleep(1)
    raise TimeoutError(prefect.log("worker")[-4000:])


def _count(prefect: Installation, wanted: dict[str, Any]) -> int:
    answer = httpx.post(f"{prefect.api}/task_runs/count", json=wanted, timeout=60)
    return int(answer.raise_for_status().text)


def main() -> None:
    """Measure and print a page."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name)) as s3:
        load = measure_load(Path(name), s3, images)
    print("# Prefect under load\n")
    print(f"`python benchmarks/prefect_load.py {images}`\n")
    print(
        f"{load.images:,} images by a deployment on `prefect worker start` and a default `prefect server"
        f" start` (SQLite), with an emulated API without latency and a local S3 server, all on one machine:"
        f" {platform.machine()}, Python {platform.python_version()}.\n"
    )
    print("| what | measured |\n|---|---|")
    print(f"| end state | {load.state} |")
    print(f"| flow run, s | {load.seconds:.1f} |")
    print(f"| from the last image to the end of the flow run, s | {load.tail_s:.1f} |")
    print(f"| task runs | {load.task_runs} |")
    print(f"| task runs left running or pending | {load.left_running} |")
    print(f'| "queue is full" in the server\'s log | {load.dropped} |')


if __name__ == "__main__":
    main()
