"""The emulator's answers, and our own requests, against facts from the vendors' published schemas.

``schemas/`` has an excerpt for each vendor: field names, types and enums, with their source and the day they
were read. They are the vendors' word; where one fails, the emulator or the product is wrong.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from imagemill.blocks.apis import PROVIDERS
from imagemill.emulator import Emulator, Settings
from tests.blocks.apis.variants import VARIANTS, make_job

FOLDER = Path(__file__).parent / "schemas"
DOCUMENTS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
FAL = "fal-ai/flux/schnell"
PREDICTIONS = "/v1/models/black-forest-labs/flux-schnell/predictions"
SMALL = {"prompt": "A fox", "width": 256, "height": 256}
GPT = {"model": "gpt-image-2", "prompt": "A fox", "size": "1024x1024"}
TOGETHER = {"model": "black-forest-labs/FLUX.1-schnell", **SMALL, "n": 2}


def check(vendor: str, name: str, content: object) -> None:
    jsonschema.validate(content, DOCUMENTS[vendor]["schemas"][name])


@pytest.fixture(scope="module")
def emulated() -> Iterator[Emulator]:
    with Emulator(Settings(latency_s=0, pictures="fast")) as emulator:
        yield emulator


@pytest.fixture
def http(emulated: Emulator) -> Iterator[httpx.Client]:
    headers = {"x-key": "k"}
    with httpx.Client(base_url=emulated.base_url, headers=headers, trust_env=False, timeout=10) as client:
        yield client
    emulated.configure(**Settings(latency_s=0, pictures="fast").as_dict())


def sent(
    client: httpx.Client, method: str, path: str, body: object = None, scheme: str = "Bearer"
) -> httpx.Response:
    return client.request(method, path, json=body, headers={"Authorization": f"{scheme} k"})


@pytest.mark.parametrize("vendor", DOCUMENTS)
def test_the_schemas_are_schemas(vendor: str) -> None:
    assert DOCUMENTS[vendor]["source"]
    assert DOCUMENTS[vendor]["read"] >= "2026-11-25"
    for schema in DOCUMENTS[vendor]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_requests(variant: str) -> None:
    api = VARIANTS[variant]("http://127.0.0.1:1")
    if api.provider == "openai":
        pytest.skip("By default it speaks to a server of one's own, which no schema describes.")
    check(api.provider, "request", api.payload(make_job(api)))


def test_every_vendor_has_a_schema() -> None:
    assert PROVIDERS.keys() <= DOCUMENTS.keys()


def test_fal(http: httpx.Client, emulated: Emulator) -> None:
    emulated.configure(max_concurrent=1, latency_s=0.2)
    first, second = (sent(http, "POST", f"/{FAL}", {"prompt": "A fox"}, "Key") for _ in range(2))
    check("fal", "submit", second.json())
    seen = set()
    for submit in (first, second):
        answer = sent(http, "GET", submit.json()["status_url"], scheme="Key")
        while True:
            check("fal", "state", answer.json())
            seen.add(answer.json()["status"])
            if answer.status_code == 200:
                break
            answer = sent(http, "GET", second.json()["status_url"], scheme="Key")
    assert seen == {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
    check("fal", "result", sent(http, "GET", second.json()["response_url"], scheme="Key").json())
    check("fal", "cancel", sent(http, "PUT", second.json()["cancel_url"], scheme="Key").json())
    for path, name in (
        (f"models?endpoint_id={FAL}&expand=openapi-3.0", "models"),
        (f"models/pricing?endpoint_id={FAL}", "pricing"),
        (f"models/requests/by-endpoint?endpoint_id={FAL}&expand=payloads", "past_requests"),
        ("models/billing-events", "billing_events"),
    ):
        check("fal", name, sent(http, "GET", f"/v1/{path}", scheme="Key").json())


@pytest.mark.parametrize("status", [401, 402, 404, 429, 500, 502, 503, 504])
def test_errors_of_fals_platform(http: httpx.Client, status: int) -> None:
    if status == 404:
        answer = sent(http, "GET", "/fal-ai/flux/requests/none/status", scheme="Key")
    else:
        answer = sent(http, "POST", f"/sync/{FAL}", {"prompt": f"#fault:{status}"}, "Key")
    check("fal", "request_error", answer.json())
    assert answer.headers["x-fal-error-type"] == answer.json()["error_type"]


def test_errors_of_fals_models(http: httpx.Client) -> None:
    answer = sent(http, "POST", f"/sync/{FAL}", {"prompt": "A fox", "num_images": 9}, "Key")
    check("fal", "model_error", answer.json())


def test_together(http: httpx.Client, emulated: Emulator) -> None:
    path = "/v1/images/generations"
    for kind in ("url", "base64"):
        check("together", "answer", sent(http, "POST", path, {**TOGETHER, "response_format": kind}).json())
    for prompt in ("#fault:402", "#fault:429", "#fault:500", "#fault:flagged", " "):
        check("together", "error", sent(http, "POST", path, {**TOGETHER, "prompt": prompt}).json())
    emulated.configure(dynamic_per_minute=60, capacity_per_s=1)
    refused = [sent(http, "POST", path, TOGETHER) for _ in range(2)][1]
    assert refused.status_code == 429
    check("together", "error", refused.json())


def test_replicate(http: httpx.Client, emulated: Emulator) -> None:
    emulated.configure(latency_s=0.1)
    created = sent(http, "POST", PREDICTIONS, {"input": {"prompt": "A fox"}})
    state = created.json()
    while state["status"] in {"starting", "processing"}:
        check("replicate", "prediction", state)
        state = sent(http, "GET", created.json()["urls"]["get"]).json()
    check("replicate", "prediction", state)
    check("replicate", "predictions", sent(http, "GET", "/v1/predictions").json())
    check("replicate", "model", sent(http, "GET", PREDICTIONS.removesuffix("/predictions")).json())
    emulated.configure(latency_s=0)
    for prompt in ("#fault:402", "#fault:429", "#fault:500", " "):
        refused = sent(http, "POST", PREDICTIONS, {"input": {"prompt": prompt}})
        assert refused.status_code == refused.json()["status"]
        check("replicate", "error", refused.json())


def test_black_forest_labs(http: httpx.Client) -> None:
    submit = http.post("/v1/flux-2-klein-4b", json=SMALL)
    check("bfl", "submit", submit.json())
    state = http.get(submit.json()["polling_url"]).json()
    while state["status"] == "Pending":
        check("bfl", "state", state)
        state = http.get(submit.json()["polling_url"]).json()
    check("bfl", "state", state)
    check("bfl", "state", http.get("/v1/get_result?id=none").json())
    for prompt in ("#fault:402", "#fault:429", "#fault:500", " "):
        check("bfl", "error", http.post("/v1/flux-dev", json={**SMALL, "prompt": prompt}).json())


def test_openai(http: httpx.Client) -> None:
    path = "/v1/images/generations"
    for fields in ({}, {"quality": "low", "background": "transparent", "output_format": "webp", "n": 2}):
        body = {**GPT, **fields}
        check("openai", "request", body)
        check("openai", "answer", sent(http, "POST", path, body).json())
    for fields in ({"seed": 1}, {"size": "1x1"}, {"prompt": "#fault:402"}, {"prompt": "#fault:flagged"}):
        check("openai", "error", sent(http, "POST", path, {**GPT, **fields}).json())


def test_runware(http: httpx.Client) -> None:
    def ask(**fields: Any) -> httpx.Response:
        task = {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "model": "runware:100@1"}
        task |= {"positivePrompt": "A fox", "width": 256, "height": 256, "includeCost": True, **fields}
        if task["taskType"] == "imageInference":
            check("runware", "request", [task])
        return sent(http, "POST", "/v1", [task])

    for kind in ("URL", "base64Data", "dataURI"):
        made = ask(outputType=kind, seed=7)
        check("runware", "answer", made.json())
    past = made.json()["data"][0]["taskUUID"]
    for kind in ("getTaskDetails", "getResponse"):
        check("runware", "answer", ask(taskType=kind, taskUUID=past).json())
        check("runware", "error", ask(taskType=kind).json())
    for refused in (ask(taskUUID=past), ask(positivePrompt="#fault:402"), ask(positivePrompt="#fault:fail")):
        check("runware", "error", refused.json())


def test_cloudflare(http: httpx.Client) -> None:
    path = "/client/v4/accounts/0123/ai/run/@cf/black-forest-labs/flux-1-schnell"
    body = {"prompt": "A fox", "steps": 4}
    check("cloudflare", "request", body)
    check("cloudflare", "answer", sent(http, "POST", path, body).json())
    for prompt in ("#fault:401", "#fault:402", "#fault:500", " "):
        check("cloudflare", "error", sent(http, "POST", path, {"prompt": prompt}).json())
