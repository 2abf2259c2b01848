"""An interrupt: requests in flight finish within a grace, what was received is kept, the rest is counted."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import boto3
import httpx
import orjson
import pytest

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.emulator import Emulator
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.telemetry import Telemetry
from imagemill.jobs import Job, JobStatus
from imagemill.quality.inspection import Inspection
from imagemill.stores.memory import MemoryStore
from tests.blocks.apis.variants import VARIANTS, make_job
from tests.cli.test_command import arguments, wait_for
from tests.conftest import Command, Place
from tests.patience import PATIENCE_S

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.mark.slow
def test_requests_in_flight_come_home_after_ctrl_c(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Start,
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=2.0, latency_sigma=0.2)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    given = arguments(place, emulated, "--run-id", "home", "--concurrency", "15", "--json")
    process = start_command("run", path, *given)
    wait_for(lambda: emulated.bill()["images"] >= 20, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err
    kept = [name for name in place.objects() if name.startswith("images/")]
    assert len(kept) == emulated.bill()["images"] < 60
    assert "got no answer" not in err

    done = command("resume", "home", "--json")
    assert done.code == 0, done.err
    assert emulated.bill()["images"] == 60
    assert (done.json["unanswered"], done.json["cost_usd"]) == (0, pytest.approx(emulated.bill()["usd"]))


@pytest.mark.slow
def test_a_signal_that_another_thread_receives_stops_the_run(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], start_command: Start
) -> None:
    """As one that comes just as the main thread begins to wait: only the end of that wait shows it."""
    emulated = emulator(latency_s=0.5, latency_sigma=0)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    process = start_command("run", path, *arguments(place, emulated, "--concurrency", "2"))
    wait_for(lambda: emulated.bill()["images"] >= 2, process)
    thread = max(int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir())
    assert thread != process.pid
    ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err
    assert emulated.bill()["images"] < 60


@pytest.mark.slow
def test_what_does_not_come_home_within_the_grace_is_counted_and_said(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], start_command: Start
) -> None:
    emulated = emulator(latency_s=20.0, latency_sigma=0)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    given = arguments(place, emulated, "--run-id", "late", "--concurrency", "5", "--grace", "0.5")
    process = start_command("run", path, *given)
    wait_for(lambda: emulated.stats()["in_flight"] == 5, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err
    assert "5 requests got no answer, and the API may charge $" in " ".join(err.split())


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_what_is_in_flight_and_says_what_it_may_cost(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Start,
    own_home: Path,
) -> None:
    emulated = emulator(latency_s=3600.0, latency_sigma=0)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    given = (
        "--run-id",
        "left",
        "--concurrency",
        "5",
        "--grace",
        "3600",
        "--request-timeout",
        "3600",
        "--json",
    )
    process = start_command("run", path, *arguments(place, emulated, *given))
    wait_for(lambda: emulated.stats()["in_flight"] == 5, process)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: '"stopping"' in (own_home / "runs/left/log.jsonl").read_text(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err
    assert orjson.loads(out)["unanswered"] == 5
    assert "5 requests got no answer, and the API may charge $" in " ".join(err.split())
    assert "Resume with: imagemill resume left" in " ".join(err.split())


@pytest.mark.slow
def test_requests_in_flight_come_home_after_the_terminal_is_closed(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    prefect_server: str,
    own_home: Path,
) -> None:
    emulated = emulator(latency_s=2.0, latency_sigma=0.2)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    given = arguments(place, emulated, "--run-id", "away", "--concurrency", "15")
    ours, terminal = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _ON_TERMINAL, "run", path, *given],
        env={**os.environ, "PREFECT_API_URL": prefect_server},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        with os.fdopen(ours, "rb", buffering=0) as screen:
            wait_for(lambda: screen.read(65536) and emulated.bill()["images"] >= 20, process)
        assert process.wait(PATIENCE_S) == 3
    kept = [name for name in place.objects() if name.startswith("images/")]
    assert len(kept) == emulated.bill()["images"] < 60
    summary = orjson.loads((own_home / "runs/away/summary.json").read_bytes())
    assert (summary["stopped"], summary["unanswered"]) == ("Interrupted.", 0)


_ON_TERMINAL = """
import fcntl, runpy, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
runpy.run_module("imagemill", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("measured", [0.0, 1.0])
def test_images_that_wait_for_a_look_or_an_upload_are_kept_when_the_run_is_cancelled(
    emulator: Callable[..., Emulator], deaf_server: str, tmp_path: Path, measured: float
) -> None:
    emulated = emulator(latency_s=0.0)
    api = VARIANTS["together"](emulated.base_url)
    session = boto3.Session("test", "test", region_name="us-east-1")
    bucket = ImageBucket("s3://images/run", endpoint_url=deaf_server, session=session)
    jobs = [make_job(api, f"Fox {n}", number=n) for n in range(50)]  # 32 are uploaded at once

    async def interrupted() -> list[Job]:
        pacer = Pacer(50)
        log = JobLog("run", tmp_path / "log.jsonl")
        recorder = Recorder("run", log, pacer, Telemetry("run", api.provider, api.model))
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as http,
            MemoryStore(tmp_path / "jobs.json") as store,
        ):
            await store.add(jobs)
            await store.mark_planned()
            engine = Engine(
                routes=Routes([Route.of(api, http, pacer, Breaker(0.5, 300.0), recorder)]),
                bucket=bucket,
                store=store,
                cost=CostLimit(None),
                recorder=recorder,
                unsaved=tmp_path / "unsaved",
                inspection=Inspection(measured),
                rng=random.Random(1),
            )
            engine.grace_s = 0.0

            async def interrupt() -> None:
                while recorder.cost_usd < 49.5 * api.price_usd(512, 512):  # noqa: ASYNC110 - a counter
                    await anyio.sleep(0.01)
                engine.stop(StopKind.INTERRUPTED, "Interrupted.")
                await engine.abandon_when_interrupted()

            async with anyio.create_task_group() as group:
                group.start_soon(interrupt)
                await engine.run_shard(0, 49)
            recorder.close()
            return [job async for batch in store.all_jobs() for job in batch]

    ended = anyio.run(interrupted)
    bucket.close()
    assert emulated.bill()["images"] == 50
    assert {job.status for job in ended} == {JobStatus.PENDING}
    for kept in ("*.png", "*.json"):  # each image with its receipt
        assert {path.stem for path in (tmp_path / "unsaved").glob(kept)} == {job.key for job in jobs}
    assert [job.unanswered for job in ended] == [0] * 50
    assert sum(job.cost_usd for job in ended) == pytest.approx(emulated.bill()["usd"])
