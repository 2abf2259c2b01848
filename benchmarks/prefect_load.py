"""A run of thousands of images on a default Prefect server, with a real worker: what is lost on the way."""

from __future__ import annotations

import io
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

from benchmarks.workshop import machine
from imagemill.emulator import Emulator, Settings
from tests.installation import Installation, installation
from tests.s3_server import S3Server, s3_server

BUCKET = "load"
TASK_RUN_STATES = ("Pending", "Running", "Completed")
"""What a task run that goes well tells the server, an event each."""
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
    task_run_events: int
    dropped: int


def measure_load(folder: Path, s3: S3Server, images: int, shard_size: int) -> Load:
    """Run ``images`` jobs through a deployment, a worker and a server of their own, all below ``folder``."""
    with installation(folder) as prefect:
        prefect.prefect("work-pool", "create", "--type", "process", "imagemill")
        prefect.prefect("deploy", "-n", "generate-catalog/on-demand")
        with prefect.worker(**s3.environment, TOGETHER_API_KEY="key"):
            return load_on(prefect, s3, images, shard_size)


def load_on(prefect: Installation, s3: S3Server, images: int, shard_size: int) -> Load:
    """Run ``images`` jobs through the deployment generate-catalog/on-demand, which has a worker."""
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    catalog = prefect.folder / "load.parquet"
    pq.write_table(pa.table({"prompt": [f"picture {n}" for n in range(images)]}), catalog)
    emulated = Emulator(Settings(latency_s=0.0, pictures="fast"))
    emulated.start()
    parameters = {
        "catalog": {"path": str(catalog)},
        "output": {"uri": f"s3://{BUCKET}/catalog", "s3_endpoint_url": s3.endpoint_url},
        "api": {"provider": "together", "base_url": emulated.base_url},
        "picture": {"width": 256, "height": 256, "format": "jpeg"},
        "execution": {"run_id": "load", "shard_size": shard_size},
    }
    try:
        flow_run = _run(prefect, parameters)
        seen = _settled(prefect, flow_run["id"])
        dropped = prefect.log("server").lower().count("queue is full")
        table = client.get_object(Bucket=BUCKET, Key="catalog/runs/load/jobs.parquet")["Body"].read()
    finally:
        emulated.stop()
        client.close()
    jobs = pq.read_table(io.BytesIO(table), columns=["status", "finished_at"])
    started, ended = (datetime.fromisoformat(flow_run[f"{when}_time"]) for when in ("start", "end"))
    return Load(
        state=flow_run["state_name"],
        images=jobs["status"].to_pylist().count("done"),
        seconds=(ended - started).total_seconds(),
        tail_s=(ended - max(jobs["finished_at"].to_pylist())).total_seconds(),
        dropped=dropped,
        **seen,
    )


def _run(prefect: Installation, parameters: dict[str, Any]) -> dict[str, Any]:
    """The flow run of these parameters, at its end."""
    found = _ask(prefect, "GET", "/deployments/name/generate-catalog/on-demand")
    where = f"/deployments/{found['id']}/create_flow_run"
    flow_run: dict[str, Any] = _ask(prefect, "POST", where, parameters=parameters)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        flow_run = _ask(prefect, "GET", f"/flow_runs/{flow_run['id']}")
        if flow_run["end_time"]:
            return flow_run
        time.sleep(1)
    raise TimeoutError(prefect.log("worker")[-4000:])


def _settled(prefect: Installation, flow_run_id: str) -> dict[str, int]:
    """Its task runs and their events, once none is missing any more or the server has had its time."""
    of_run = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
    running = {"task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    events = {
        "related": {"id": [f"prefect.flow-run.{flow_run_id}"]},
        "event": {"name": [f"prefect.task-run.{state}" for state in TASK_RUN_STATES]},
    }
    deadline = time.monotonic() + _SETTLING_S
    while True:
        seen = {
            "task_runs": int(_ask(prefect, "POST", "/task_runs/count", **of_run)),
            "left_running": int(_ask(prefect, "POST", "/task_runs/count", **of_run, **running)),
            "task_run_events": int(_ask(prefect, "POST", "/events/filter", filter=events, limit=1)["total"]),
        }
        told = seen["task_runs"] and seen["task_run_events"] >= len(TASK_RUN_STATES) * seen["task_runs"]
        if (told and not seen["left_running"]) or time.monotonic() > deadline:
            return seen
        time.sleep(0.5)


def _ask(prefect: Installation, method: str, path: str, **document: Any) -> Any:  # noqa: ANN401 - JSON
    answer = httpx.request(method, f"{prefect.api}{path}", json=document or None, timeout=60)
    return answer.raise_for_status().json()


def main(images: int, *shard_sizes: int) -> None:
    """Measure a run for each shard size, and print a table."""
    print(f"`python -m benchmarks.prefect_load {images} {' '.join(map(str, shard_sizes))}`, {machine()}.\n")
    print(
        "| images | shard size | end state | flow run s | last image to end s | task runs | left running"
        ' | their events | of them recorded | "queue is full" |'
    )
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for shard_size in shard_sizes:
        with tempfile.TemporaryDirectory() as name, s3_server(Path(name)) as s3:
            load = measure_load(Path(name), s3, images, shard_size)
        print(
            f"| {load.images:,} | {shard_size} | {load.state} | {load.seconds:.1f} | {load.tail_s:.1f}"
            f" | {load.task_runs:,} | {load.left_running:,} | {len(TASK_RUN_STATES) * load.task_runs:,}"
            f" | {load.task_run_events:,} | {load.dropped:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*[int(number) for number in sys.argv[1:] or ("10000", "250")])
