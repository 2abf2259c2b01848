"""A run that version 0.1 began, killed halfway, goes on; its pictures are found, not paid for again.

The fixture was written by the last commit of 0.1: a catalog of 24 rows (one duplicate, one blank),
two runs of it killed by SIGKILL (Together with SQLite, fal with memory), their folders and their bucket.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagemill.emulator import Emulator
from tests.conftest import BUCKET, Command, Place

OLD = Path(__file__).parents[1] / "fixtures" / "run_of_0_1"
UNIQUE = 22


def put_back(place: Place, provider: str, home: Path, emulated: Emulator) -> int:
    """Lay out folder and bucket as the kill left them, at this test's addresses; the number of images."""
    run_id = f"begun-by-0.1-{provider}"
    shutil.copytree(OLD / "home" / "runs" / run_id, home / "runs" / run_id)
    client = place.s3.client()
    images = 0
    for file in (OLD / "bucket" / provider).rglob("*"):
        about = file.with_name(file.name + ".metadata.json")
        if not about.exists():
            continue
        name = file.relative_to(OLD / "bucket" / provider).as_posix()
        client.put_object(
            Bucket=BUCKET, Key=place.prefix + name, Body=file.read_bytes(), **json.loads(about.read_text())
        )
        images += name.startswith("images/")
    client.close()
    record = home / "runs" / run_id / "run.json"
    told = json.loads(record.read_text())
    told["settings"]["api"]["base_url"] = emulated.base_url
    told["settings"]["output"] |= {"uri": place.uri, "s3_endpoint_url": place.s3.endpoint_url}
    told["settings"]["catalog"]["path"] = str(OLD / "catalog.parquet")
    record.write_text(json.dumps(told))
    return images


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["together", "fal"])
def test_a_run_that_0_1_began_is_resumed(
    place: Place,
    emulator: Callable[..., Emulator],
    own_home: Path,
    command: Callable[..., Command],
    provider: str,
) -> None:
    emulated = emulator()
    images = put_back(place, provider, own_home, emulated)

    done = command("resume", f"begun-by-0.1-{provider}", "--json")

    assert done.code == 0, done.err
    assert (done.json["unique"], done.json["done"], done.json["duplicates"]) == (UNIQUE, UNIQUE, 1)
    assert emulated.bill()["images"] == UNIQUE - images
    assert done.json["generated"] == UNIQUE
    assert done.json["reused"] == 0  # this run paid for them itself, before it was killed


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["together", "fal"])
def test_a_new_run_finds_the_pictures_that_0_1_paid_for(
    place: Place,
    emulator: Callable[..., Emulator],
    own_home: Path,
    command: Callable[..., Command],
    provider: str,
) -> None:
    emulated = emulator()
    images = put_back(place, provider, own_home, emulated)

    done = command(
        *("run", str(OLD / "catalog.parquet"), "--provider", provider, "--base-url", emulated.base_url),
        *("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url),
        *("--width", "256", "--height", "256", "--format", "jpeg", "--json"),
    )

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["reused"]) == (UNIQUE, images)
    assert emulated.bill()["images"] == done.json["generated"] == UNIQUE - images
