"""What a run shows in Prefect's UI."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from imagemill.blocks.apis import Together
from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.formatting import money
from imagemill.reports import artifacts
from tests.conftest import Place
from tests.patience import PATIENCE_S

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
    assert headline.endswith("; retry-failed skips what the API refused, unless permanent is set.")
    rows = json.loads(found["imagemill-metrics"].data)
    assert sum(row["images"] for row in rows) == 2
    link = re.search(r"\[Open the report of run r\]\((.*)\)", found["imagemill-report"].data)
    assert link is not None
    assert "<title>" in httpx.get(link[1]).text
    assert place.s3.environment["AWS_SECRET_ACCESS_KEY"] not in link[1]


def events_of(state: Any, least: set[str]) -> list[dict[str, Any]]:
    """All events of a flow run, once those of these names are there."""
    flow_run_id = str(state.state_details.flow_run_id)
    wanted = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}, "limit": 50}
    deadline = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while True:
            found: list[dict[str, Any]] = client.request("POST", "/events/filter", json=wanted).json()[
                "events"
            ]
            if least <= {event["event"] for event in found}:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)


def test_a_run_materializes_its_manifest_metrics_and_records(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    """On a real server: an automation waits for such an event, of an address that stays the same."""
    client = place.s3.client()
    client.upload_file(catalog(prompt=["a", "b", None]), "tests", place.prefix + "catalog.parquet")
    client.close()
    path, made = f"{place.uri}/catalog.parquet", "prefect.asset.materialization.succeeded"
    state = generate(place, emulator(), path, execution={"run_id": "r"})
    events = events_of(
        state, {made, "prefect.asset.referenced", "prefect.flow-run.CompletedWithRejectedRows"}
    )
    materialized = {e["resource"]["prefect.resource.id"]: e for e in events if e["event"] == made}
    manifest, metrics, records = (f"{place.uri}/{name}" for name in ("manifest.parquet", "metrics", "runs"))
    assert set(materialized) == {manifest, metrics, records}
    assert materialized[manifest]["payload"]["added"] == 2
    assert materialized[records]["payload"]["report"] == f"{place.uri}/runs/r/report.html"
    assert materialized[records]["payload"]["done"] == 2
    sources = {
        asset: {
            each["prefect.resource.id"] for each in e["related"] if each["prefect.resource.role"] == "asset"
        }
        for asset, e in materialized.items()
    }
    assert sources == {manifest: {path}, metrics: {manifest}, records: {manifest}}
    # Prefect Cloud limits how many of each an account may send: the figures of docs/deploy-it.md.
    assert len(artifacts_of(state)) == 4
    names = [e["event"] for e in events if e["event"] != "prefect.artifact.updated"]  # by how long it takes
    assert len(names) <= 25 + 3, names

    # A catalog without a usable row leaves the manifest as it is.
    state = generate(place, emulator(), catalog(prompt=[None]))
    events = events_of(state, {"prefect.flow-run.Failed", made})
    assert {e["resource"]["prefect.resource.id"] for e in events if e["event"] == made} == {metrics, records}


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
    price_usd = Together(api_key="k").price_usd(256, 256, 4)
    path = catalog(prompt=["a #fault:reset", "b"])
    state = generate(place, emulator(), path, limits={"max_cost_usd": 1.5 * price_usd, "concurrency": 1})
    headline = artifacts_of(state)["imagemill-headline"].data
    assert f"1 request got no answer, and the API may charge {money(price_usd)} more." in headline
    assert f"and perhaps {money(price_usd)} more for 1 request without an answer" in state.message
    assert "Stopped early: The next image would exceed the limit" in headline
    assert "raise limits.max_cost_usd to go on." in headline
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


def test_a_long_run_is_shown_anew_less_often() -> None:
    """Ten hours take some hundreds of updates, not eighteen thousand."""
    age_s, updates = 0.0, 0
    while age_s < 36_000:
        pause_s = artifacts.refresh_s(age_s)
        assert 2.0 <= pause_s <= 30.0
        age_s, updates = age_s + pause_s, updates + 1
    assert updates < 1_400


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
