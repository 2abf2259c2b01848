"""fal's platform API: models and their schemas, prices, past requests, billing events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from imagemill.emulator import Emulator, Settings

Ask = Callable[..., httpx.Response]
Follow = Callable[[httpx.Response], httpx.Response]

KEY = {"Authorization": "Key k"}
MODEL = "fal-ai/flux/schnell"


@pytest.fixture
def running() -> Iterator[Emulator]:
    """An emulator of its own for each test: a queue remembers."""
    with Emulator(Settings(latency_s=0)) as emulator:
        yield emulator


@pytest.fixture
def get(client: httpx.Client) -> Callable[..., dict[str, Any]]:
    def ask(path: str, **query: object) -> dict[str, Any]:
        answer = client.get(f"/v1/{path}", params=query, headers=KEY)
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    return ask


Get = Callable[..., dict[str, Any]]


def test_a_model_with_its_schema(get: Get, client: httpx.Client) -> None:
    (model,) = get("models", endpoint_id=MODEL, expand="openapi-3.0")["models"]
    assert (model["endpoint_id"], model["metadata"]["status"]) == (MODEL, "active")
    body = model["openapi"]["paths"][f"/{MODEL}"]["post"]["requestBody"]["content"]["application/json"]
    name = body["schema"]["$ref"].rpartition("/")[2]
    schema = model["openapi"]["components"]["schemas"][name]
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["num_inference_steps"]["maximum"] == 12
    assert "openapi" not in get("models", endpoint_id=MODEL)["models"][0]
    assert get("models", endpoint_id="fal-ai/other")["models"] == []
    assert client.get("/v1/models").status_code == 200  # the key is optional
    assert client.get("/v1/models", headers={"authorization": "Bearer"}).status_code == 401  # at Together


def test_prices(get: Get, client: httpx.Client) -> None:
    (price,) = get("models/pricing", endpoint_id=MODEL)["prices"]
    assert price == {"endpoint_id": MODEL, "unit_price": 0.003, "unit": "megapixels", "currency": "USD"}
    assert client.get("/v1/models/pricing").status_code == 401
    unknown = client.get("/v1/models/pricing", params={"endpoint_id": "other"}, headers=KEY)
    assert unknown.status_code == 404


def test_past_requests_are_listed_by_their_end(
    fal: Ask, get: Get, emulator: Emulator, client: httpx.Client
) -> None:
    emulator.configure(latency_s=0.2, latency_sigma=0, max_concurrent=1)
    ids = [fal(seed=seed).json()["request_id"] for seed in range(3)]
    assert get("models/requests/by-endpoint", endpoint_id=MODEL)["items"] == []
    while emulator.stats()["in_flight"]:
        pass
    seen: list[dict[str, Any]] = []
    query: dict[str, Any] = {"endpoint_id": MODEL, "limit": 2, "expand": "payloads"}
    while True:
        page = get("models/requests/by-endpoint", **query)
        seen += page["items"]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
        assert query["cursor"] == "Mg=="
    assert [item["request_id"] for item in seen] == ids[::-1]
    assert [item["json_input"]["seed"] for item in seen] == [2, 1, 0]
    last = seen[0]
    assert last["status_code"] == 200
    assert last["duration"] == pytest.approx(0.2, abs=0.15)
    assert client.get(last["json_output"]["images"][0]["url"]).status_code == 200
    assert "json_input" not in get("models/requests/by-endpoint", endpoint_id=MODEL)["items"][0]
    assert get("models/requests/by-endpoint", endpoint_id="other")["items"] == []
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert get("models/requests/by-endpoint", endpoint_id=MODEL, start=tomorrow)["items"] == []


def test_past_requests_by_outcome(fal: Ask, follow: Follow, get: Get) -> None:
    for prompt in ("A fox", "A fox #fault:fail", " "):
        follow(fal(prompt))

    def statuses(**query: str) -> list[int]:
        items = get("models/requests/by-endpoint", endpoint_id=MODEL, **query)["items"]
        return sorted(item["status_code"] for item in items)

    assert statuses() == [200, 422, 500]
    assert statuses(status="success") == [200]
    assert statuses(status="user_error") == [422]


@pytest.mark.parametrize("query", [{"start": "yesterday"}, {"limit": "x"}, {"cursor": "2"}, {"cursor": "x"}])
def test_queries_that_cannot_be_read(client: httpx.Client, query: dict[str, str]) -> None:
    for path in ("requests/by-endpoint", "billing-events"):
        answer = client.get(f"/v1/models/{path}", params={"endpoint_id": MODEL, **query}, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error")


def test_billing_events_are_the_bill(fal: Ask, follow: Follow, get: Get, emulator: Emulator) -> None:
    small, large, failed = (
        fal(image_size="square"),
        fal(image_size={"width": 2048, "height": 1024}),
        fal("#fault:fail"),
    )
    for submit in (small, large, failed):
        follow(submit)
    wanted = ",".join(submit.json()["request_id"] for submit in (small, large, failed))
    events = get("models/billing-events", request_id=wanted)["billing_events"]
    by_id = {event["request_id"]: event for event in events}
    assert {name: event["cost_estimate_nano_usd"] for name, event in by_id.items()} == {
        small.json()["request_id"]: 3_000_000,
        large.json()["request_id"]: 6_000_000,
    }
    assert by_id[large.json()["request_id"]]["output_units"] == 2
    assert sum(event["cost_estimate_nano_usd"] for event in events) / 1e9 == emulator.bill()["usd"]


def test_billing_events_need_an_admin_and_some_time(
    fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator
) -> None:
    follow(fal())
    emulator.configure(admin_keys=("boss",), api_keys=("k",), billing_lag_s=60)

    def events(key: str) -> httpx.Response:
        return client.get("/v1/models/billing-events", headers={"Authorization": f"Key {key}"})

    assert [events(key).status_code for key in ("k", "other", "boss")] == [403, 401, 200]
    assert events("boss").json()["billing_events"] == []
    emulator.configure(billing_lag_s=0)
    assert len(events("boss").json()["billing_events"]) == 1
    assert fal(key="boss").status_code == 200
