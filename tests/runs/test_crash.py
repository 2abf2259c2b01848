"""A run that is killed and started again finishes, and pays for nothing twice that was finished."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.engine.engine import Engine
from imagemill.stores import memory
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place, full_disk
from tests.patience import PATIENCE_S

PARTI = Path(__file__).parents[3] / "shared" / "catalogs" / "parti_prompts.parquet"


def run_arguments(place: Place, emulated: Emulator, provider: str, path: str) -> list[str]:
    return [
        *("run", path, "--provider", provider, "--base-url", emulated.base_url),
        *("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url),
        *("--run-id", "killed", "--width", "256", "--height", "256", "--json"),
    ]


def check_everything_is_there(place: Place, unique: int) -> None:
    jobs = place.table("runs/killed/jobs.parquet")
    assert [job["number"] for job in jobs] == list(range(unique))
    assert {job["status"] for job in jobs} == {"done"}
    objects = place.objects()
    assert {job["image"] for job in jobs} == {name for name in objects if name.startswith("images/")}
    for job in random.Random(0).sample(jobs, 20):
        with Image.open(io.BytesIO(place.read(job["image"]))) as image:
            image.load()


def settled(emulated: Emulator) -> int:
    """The images charged, once the API has finished what it had begun when the client died."""
    while emulated.stats()["in_flight"]:
        time.sleep(0.01)
    images: int = emulated.bill()["images"]
    return images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "store"),
    [("together", "memory"), ("fal", "sqlite"), ("together", "postgres"), ("fal", "redis")],
)
def test_a_killed_run_resumes(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    store_url: Callable[[str], str],
    provider: str,
    store: str,
) -> None:
    emulated = emulator(latency_s=0.2, max_concurrent=30)
    path = catalog(prompt=[f"p{n}" for n in range(150)])
    given = [*run_arguments(place, emulated, provider, path), "--store", store_url(store)]
    process = start_command(*given)
    wait_for(lambda: emulated.bill()["images"] >= 60, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len([name for name in place.objects() if name.startswith("images/")])
    in_flight = settled(emulated) - finished

    done = command(*given)

    assert done.code == 0, done.err
    summary = done.json
    assert (summary["done"], summary["pending"], summary["generated"]) == (150, 0, 150)
    check_everything_is_there(place, 150)
    bill = emulated.bill()
    charged = {line["prompt"]: line["count"] for line in bill["by_key"].values()}
    assert charged.keys() == {f"p{n}" for n in range(150)}
    # Only what was never answered is paid again, and the run knows which that was: on a synchronous API
    # whatever was in flight, on a queued one nothing that the API lists.
    unanswered = {int(job["id"]): job["unanswered"] for job in place.table("runs/killed/jobs.parquet")}
    assert all(charged[f"p{n}"] <= 1 + unanswered[n] for n in range(150))
    twice = bill["images"] - 150
    assert twice <= summary["unanswered"] == sum(unanswered.values())
    assert summary["cost_usd"] <= bill["usd"] + 1e-9 <= summary["cost_usd"] + summary["unanswered_usd"] + 2e-9
    if provider == "together":
        assert twice == in_flight
    else:
        assert twice == 0  # the API was asked for what it had taken


@pytest.mark.slow
def test_a_killed_run_over_two_accounts_resumes(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
) -> None:
    accounts = {vendor: emulator(latency_s=0.3, max_concurrent=3) for vendor in ("together", "fal")}
    routes = [f"{name},base_url={each.base_url},usd_per_image=0.002" for name, each in accounts.items()]
    process = start_command(
        *("run", catalog(prompt=[f"p{n}" for n in range(150)]), "--output", place.uri, "--run-id", "killed"),
        *("--s3-endpoint-url", place.s3.endpoint_url, "--width", "256", "--height", "256"),
        *(part for route in routes for part in ("--route", route)),
    )
    wait_for(lambda: all(each.bill()["images"] >= 10 for each in accounts.values()), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for each in accounts.values():
        settled(each)

    done = command("resume", "killed", "--json")

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"], done.json["generated"]) == (150, 0, 150)
    check_everything_is_there(place, 150)
    bills = {name: each.bill() for name, each in accounts.items()}
    charged = Counter[str]()
    for bill in bills.values():
        charged.update({line["prompt"]: line["count"] for line in bill["by_key"].values()})
    jobs = place.table("runs/killed/jobs.parquet")
    unanswered = {job["id"]: job["unanswered"] for job in jobs}
    assert all(charged[f"p{n}"] <= 1 + unanswered[str(n)] for n in range(150))
    assert max(line["count"] for line in bills["fal"]["by_key"].values()) == 1  # it was asked first
    made = Counter(job["route"] for job in jobs)
    assert all(
        made[name] <= bill["images"] <= made[name] + done.json["unanswered"] for name, bill in bills.items()
    )
    spent_usd = sum(bill["images"] * 0.002 for bill in bills.values())
    assert done.json["cost_usd"] <= spent_usd + 1e-9
    assert spent_usd <= done.json["cost_usd"] + done.json["unanswered_usd"] + 1e-9


@pytest.mark.slow
def test_a_run_is_worked_on_by_one_process(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=2, max_concurrent=5)
    path = catalog(prompt=[f"p{n}" for n in range(150)])
    given = [*run_arguments(place, emulated, "together", path), "--concurrency", "5"]
    first = start_command(*given)
    wait_for(lambda: emulated.bill()["images"] >= 1, first)

    second = command(*given)

    assert first.poll() is None
    emulated.configure(latency_s=0)
    assert (second.code, second.out) == (2, "")
    assert second.err.startswith("imagemill: The run is in use by process ")
    assert second.err.count("\n") == 1
    out, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0, err
    assert '"done":150' in out
    assert emulated.bill()["images"] == 150


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_a_resume_finishes_it(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    prefect_server: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulated = emulator(latency_s=0.1)
    path = catalog(prompt=[f"p{n}" for n in range(150)])
    given = [*run_arguments(place, emulated, "fal", path), "--store", "memory"]
    write = memory.write_whole
    open_file = Path.open

    def fill() -> None:
        if emulated.bill()["images"] >= 40:
            full_disk()

    def full(path: Path, content: bytes) -> None:
        fill()
        write(path, content)

    class FullFile(io.FileIO):
        def write(self, content: Any) -> int:
            fill()
            return super().write(content)

    def full_for_the_log(path: Path, *given: Any, **named: Any) -> Any:
        return FullFile(path, "ab") if given == ("ab",) else open_file(path, *given, **named)

    def full_for_the_summary(path: Path, content: bytes) -> None:
        if path.name == "summary.json":
            full_disk()
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "write_whole", full)
        patch.setattr("imagemill.runs.folder.write_whole", full_for_the_summary)
        patch.setattr(Path, "open", full_for_the_log)
        patch.setattr("imagemill.stores.base.OUTAGE_S", 1.0)
        assert main(given) == 3
    stopped = capsys.readouterr()
    assert "No space left on device" in stopped.err
    assert "imagemill resume killed" in stopped.err
    assert main(["runs", "killed"]) == 0
    assert "The run did not finish" in capsys.readouterr().out

    assert main(given) == 0
    summary = json.loads(capsys.readouterr().out)
    check_everything_is_there(place, 150)
    # What no disk took note of is on the images' receipts: nothing paid is missing from the bill.
    assert [summary[name] for name in ("done", "generated", "reused", "requests")] == [150, 150, 0, 150]
    bill = emulated.bill()
    assert bill["images"] == 150
    assert summary["cost_usd"] == pytest.approx(bill["usd"], abs=1e-9)
    assert {job["attempts"] for job in place.table("runs/killed/jobs.parquet")} == {1}
    assert all(job["latency_s"] for job in place.table("runs/killed/jobs.parquet"))


@pytest.mark.usefixtures("prefect_server")
def test_a_disk_that_becomes_read_only_leaves_the_run_its_summary(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    make_read_only: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing can be removed there either, such as the summary of the run before."""
    emulated = emulator()
    given = [*run_arguments(place, emulated, "together", catalog(prompt=["a", "b"])), "--store", "memory"]
    run_shard = Engine.run_shard

    async def then_read_only(engine: Engine, *shard: int) -> None:
        await run_shard(engine, *shard)
        make_read_only()

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run_shard", then_read_only)
        patch.setattr("imagemill.stores.base.OUTAGE_S", 1.0)
        assert main(given) == 3
    stopped = capsys.readouterr()
    assert json.loads(stopped.out)["cost_usd"] == pytest.approx(emulated.bill()["usd"])
    assert "Read-only file system" in stopped.err
    assert "imagemill resume killed" in stopped.err
    assert "Traceback" not in stopped.err


@pytest.mark.slow
@pytest.mark.skipif(not PARTI.exists(), reason="the PartiPrompts catalog is not on this machine")
def test_partiprompts_whole_killed_and_resumed(
    place: Place,
    emulator: Callable[..., Emulator],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=0.3, max_concurrent=40)
    given = [*run_arguments(place, emulated, "together", str(PARTI)), "--column", "id=sku"]
    process = start_command(*given)
    wait_for(lambda: emulated.bill()["images"] >= 700, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {name for name in place.objects() if name.startswith("images/")}
    in_flight = settled(emulated) - len(finished)

    done = command(*given)

    assert done.code == 0, done.err
    assert (done.json["rows"], done.json["unique"], done.json["done"]) == (1632, 1632, 1632)
    check_everything_is_there(place, 1632)
    bill = emulated.bill()
    assert len(bill["by_key"]) == 1632
    assert bill["images"] - 1632 <= in_flight
    rows = place.table("manifest.parquet")
    assert rows[0]["id"] == "parti-00001"
    assert {"category", "challenge", "note"} <= set(rows[0])
