"""What a run shows in Prefect's UI."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.reports import artifacts
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")


def generate(place: Place, emulated: Emulator, path: str, **more: Any) -> Any:
    return generate_catalog(
        catalog=path,
        api={"provider": "together", "base_url": emulated.base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        return_state=True,
        **more,
    )


def artifacts_of(state: Any) -> dict[str, Artifact]:
    wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
    found = [artifact for artifact in found if artifact.key]  # the stored result has none
    assert len({artifact.key for artifact in found}) == len(found)
    return {str(artifact.key): artifact for artifact in found}


def test_progress_headline_metrics_and_report(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    state = generate(place, emulator(), catalog(prompt=["a", "b", "c #fault:400"]), execution={"run_id": "r"})
    found = artifacts_of(state)
    assert set(found) == {
        "imagemill-progress", "imagemill-headline", "imagemill-metrics", "imagemill-report",
    }  # fmt: skip
    assert (found["imagemill-progress"].type, found["imagemill-progress"].data) == ("progress", 100.0)
    headline = found["imagemill-headline"].data
    assert "**2** of 3" in headline
    assert "1 (33.3%)" in headline
    rows = json.loads(found["imagemill-metrics"].data)
    assert sum(row["images"] for row in rows) == 2
    link = re.search(r"\[Open the report of run r\]\((.*)\)", found["imagemill-report"].data)
    assert link is not None
    assert "<title>" in httpx.get(link[1]).text
    assert place.s3.environment["AWS_SECRET_ACCESS_KEY"] not in link[1]


@pytest.mark.slow
def test_they_are_written_anew_while_the_run_goes_on(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(artifacts, "REFRESH_S", 0.1)
    shown: list[float] = []
    update = SyncPrefectClient.update_artifact

    def watched(self: SyncPrefectClient, artifact_id: Any, artifact: Any) -> None:
        if isinstance(artifact.data, float):
            shown.append(artifact.data)
        update(self, artifact_id, artifact)

    monkeypatch.setattr(SyncPrefectClient, "update_artifact", watched)
    path = catalog(prompt=[f"p{n}" for n in range(40)])
    state = generate(place, emulator(latency_s=0.3), path, limits={"concurrency": 5})
    assert state.is_completed()
    assert shown == sorted(shown)
    assert len(set(shown)) > 2
    assert shown[-1] == 100.0


def test_a_run_that_stops_says_so(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    state = generate(place, emulator(), catalog(prompt=["a"]), limits={"max_cost_usd": 0})
    headline = artifacts_of(state)["imagemill-headline"].data
    assert "Stopped early: `The next image would exceed the limit" in headline
    assert "start it again with `execution.run_id` set to" in headline


def test_a_run_goes_on_without_them(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_: object) -> None:
        raise OSError("the API is away")

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", away)
    assert generate(place, emulator(), catalog(prompt=["a"])).is_completed()
    assert "Prefect did not accept the run's artifacts (OSError)." in caplog.text


@pytest.mark.parametrize("buckets", [0, 1, 200, 201, 240])
def test_metrics_have_at_most_200_rows_and_lose_nothing(buckets: int) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    rows = artifacts.metrics_rows(
        [
            {
                "bucket_start": start + timedelta(seconds=10 * n), "bucket_s": 10, "images": 2, "failed": 0,
                "p95_latency_s": None if n % 2 else 1.0, "p95_queued_s": None,
                "rate_limited": 1, "retries": 1,
                "cost_usd": 0.1, "cost_usd_total": 0.1 * (n + 1),
            }
            for n in range(buckets)
        ]
    )  # fmt: skip
    assert len(rows) <= 200
    assert sum(int(str(row["images"])) for row in rows) == 2 * buckets
    assert all(row["images/min"] == 12.0 for row in rows)
