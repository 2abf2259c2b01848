"""A run that is killed and started again finishes, and pays for nothing twice that was finished."""

from __future__ import annotations

import io
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from emulator import Emulator
from tests.conftest import Command, Place
from tests.test_command import wait_for

PARTI = Path(__file__).parents[2] / "shared" / "catalogs" / "parti_prompts.parquet"


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


@pytest.mark.parametrize(("provider", "store"), [("together", "sqlite"), ("fal", "memory")])
def test_a_killed_run_resumes(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    provider: str,
    store: str,
) -> None:
    emulated = emulator(latency_s=0.2, max_concurrent=30)
    path = catalog(prompt=[f"p{n}" for n in range(300)])
    given = [*run_arguments(place, emulated, provider, path), "--store", store]
    finished = 0
    charged_again = 0
    for images in (40, 150):
        process = start_command(*given)
        wait_for(lambda images=images: emulated.bill()["images"] >= images, process)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = len([name for name in place.objects() if name.startswith("images/")])
        assert now >= finished
        finished = now
        charged_again += emulated.stats()["in_flight"] + emulated.bill()["images"] - finished

    done = command(*given)

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"], done.json["generated"]) == (300, 0, 300)
    check_everything_is_there(place, 300)
    counts = [entry["count"] for entry in emulated.bill()["by_key"].values()]
    assert len(counts) == 300
    if provider == "fal":
        # A request id is on disk before its first poll. Only a submit that was under way when the
        # process died can be unknown to it, and those are few.
        assert sum(counts) - 300 <= 2 * 10
    assert sum(counts) - 300 <= charged_again
    assert done.json["requests"] >= 300


@pytest.mark.slow
@pytest.mark.skipif(not PARTI.exists(), reason="the PartiPrompts catalog is not on this machine")
@pytest.mark.parametrize("provider", ["together", "fal"])
def test_partiprompts_whole_killed_and_resumed(
    place: Place,
    emulator: Callable[..., Emulator],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    provider: str,
) -> None:
    emulated = emulator(latency_s=0.3, max_concurrent=40)
    given = [*run_arguments(place, emulated, provider, str(PARTI)), "--column", "id=sku"]
    process = start_command(*given)
    wait_for(lambda: emulated.bill()["images"] >= 700, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {name for name in place.objects() if name.startswith("images/")}
    in_flight = emulated.bill()["images"] + emulated.stats()["in_flight"] - len(finished)

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
