"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from emulator import Emulator
from flows.generate_catalog import generate_catalog
from tasks.session import image_api
from tasks.settings import ApiSettings
from tests.conftest import Place
from tests.test_command import wait_for

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(prefect_server: str, place: Place) -> Callable[..., subprocess.Popen[str]]:
    def start(name: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={
                **os.environ,
                "PREFECT_API_URL": prefect_server,
                "AWS_ENDPOINT_URL": place.s3.endpoint_url,
                "PYTHONPATH": str(EXAMPLES.parent),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_first_run_and_metrics_with_duckdb(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    example: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    process = example("first_run.py", catalog(prompt=["a", "b", "a"]), place.uri, emulator().base_url)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("2 of 2 images for $0.0014: s3://")

    for name in place.objects():
        if name.startswith("metrics/"):
            target = tmp_path / name
            target.parent.mkdir(parents=True)
            target.write_bytes(place.read(name))
    process = example("metrics_with_duckdb.py", str(tmp_path / "metrics"))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "together" in out


def test_first_run_says_what_cannot_be_used(
    place: Place, example: Callable[..., subprocess.Popen[str]]
) -> None:
    process = example("first_run.py", "nowhere.parquet", place.uri)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The catalog 'nowhere.parquet' does not exist." in err.splitlines()


def test_saved_blocks_hold_all_keys(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    example: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = example("save_blocks.py", place.uri, "postgresql://mill@db.example.com/jobs").communicate()
    assert out.splitlines() == [
        "api: {block: imagemill-together/main}",
        "api: {block: imagemill-fal/main}",
        "output: {uri: s3://tests/catalog, s3_bucket_block: images}",
        "execution: {store: block:imagemill-postgres-store/jobs}",
    ], err
    for name in place.s3.environment:
        monkeypatch.delenv(name)
    assert image_api(ApiSettings(block="imagemill-fal/main")).provider == "fal"
    summary = generate_catalog(
        catalog=catalog(prompt=["a"]),
        output={"uri": place.uri, "s3_bucket_block": "images"},
        api={"provider": "together", "base_url": emulator().base_url},
    )
    assert summary.done == 1


@pytest.mark.slow
def test_scheduled_refresh_is_scheduled(
    place: Place, catalog: Callable[..., str], example: Callable[..., subprocess.Popen[str]]
) -> None:
    process = example("scheduled_refresh.py", catalog(prompt=["a"]), place.uri)
    with get_client(sync_client=True) as client:

        def scheduled() -> bool:
            deployments = client.read_deployments()
            return any(d.name == "nightly-from-python" and d.schedules for d in deployments)

        wait_for(scheduled, process)
    process.terminate()
    process.communicate()
