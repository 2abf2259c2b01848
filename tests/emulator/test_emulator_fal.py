"""fal's wire format: queue, result, cancellation, synchronous form, bill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from imagemill.emulator import Emulator, Settings

Ask = Callable[..., httpx.Response]
Follow = Callable[[httpx.Response], httpx.Response]
Decode = Callable[[str | bytes], Image.Image]

Until = Callable[[Callable[[], bool]], None]

KEY = {"Authorization": "Key k"}
MODEL = "fal-ai/flux/schnell"
PATH = f"/{MODEL}"
SYNC = f"/sync/{MODEL}"
LIST = "/v1/models/requests/by-endpoint"


@pytest.fixture
def running() -> Iterator[Emulator]:
    """An emulator of its own for each test: a queue remembers."""
    with Emulator(Settings(latency_s=0)) as emulator:
        yield emulator


def test_the_queue(fal: Ask, client: httpx.Client, emulator: Emulator, decode: Decode) -> None:
    emulator.configure(latency_s=0.3, latency_sigma=0, max_concurrent=1)
    fal("The one before")
    submit = fal()
    links = submit.json()
    root = f"{emulator.base_url}/fal-ai/flux/requests/{links['request_id']}"
    assert submit.status_code == 200
    assert submit.headers["x-fal-request-id"] == links["request_id"]
    assert links == {
        "request_id": links["request_id"],
        "response_url": root,
        "status_url": f"{root}/status",
        "cancel_url": f"{root}/cancel",
        "status": "IN_QUEUE",
        "queue_position": 0,
    }
    early = client.get(root, headers=KEY)
    assert (early.status_code, early.json()["detail"]) == (400, "Request is still in progress")
    seen = []
    while True:
        answer = client.get(links["status_url"], headers=KEY)
        state = answer.json()["status"]
        if state not in seen:
            seen.append(state)
        if state == "COMPLETED":
            break
        assert answer.status_code == 202
    assert answer.status_code == 200
    assert answer.json()["metrics"] == {"inference_time": 0.3}
    assert seen == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    result = client.get(root, headers=KEY).json()
    picture = result["images"][0]
    assert (picture["width"], picture["height"]) == (128, 64)
    assert picture["content_type"] == "image/jpeg"
    assert (result["seed"], result["prompt"]) == (7, "A lighthouse")
    assert result["has_nsfw_concepts"] == [False]
    assert decode(client.get(picture["url"]).content).size == (128, 64)
    assert client.get(root, headers=KEY).json() == result
    assert emulator.bill()["images"] == 2
    assert emulator.stats()["polls"] > 2


def test_the_queue_takes_every_submit_and_only_its_slots_run(
    fal: Ask, client: httpx.Client, emulator: Emulator, until: Until
) -> None:
    emulator.configure(latency_s=0.5, latency_sigma=0, max_concurrent=2)
    submits = [fal(seed=seed) for seed in range(9)]
    assert {submit.status_code for submit in submits} == {200}
    positions = [submit.json()["queue_position"] for submit in submits]
    assert positions[:3] == [0, 0, 0]
    assert positions[-1] > positions[3] >= 0
    until(lambda: emulator.stats()["queued"] + emulator.stats()["in_flight"] == 0)
    assert emulator.stats()["peak_in_flight"] == 2
    assert emulator.stats()["rate_limited"] == 0
    assert emulator.bill()["images"] == 9
    began = client.get(LIST, params={"endpoint_id": MODEL}, headers=KEY).json()["items"]
    order = [item["request_id"] for item in sorted(began, key=lambda item: item["started_at"])]
    assert order == [submit.json()["request_id"] for submit in submits]


def test_more_slots_are_used_at_once(fal: Ask, emulator: Emulator) -> None:
    emulator.configure(latency_s=5, latency_sigma=0, max_concurrent=1)
    for seed in range(4):
        fal(seed=seed)
    assert (emulator.stats()["in_flight"], emulator.stats()["queued"]) == (1, 3)
    emulator.configure(max_concurrent=3)
    assert (emulator.stats()["in_flight"], emulator.stats()["queued"]) == (3, 1)


def test_the_stream_of_a_requests_states(fal: Ask, client: httpx.Client, emulator: Emulator) -> None:
    emulator.configure(latency_s=0.7, latency_sigma=0, max_concurrent=1)
    fal("The first")
    fal("The second")
    with client.stream("GET", f"{fal().json()['status_url']}/stream", headers=KEY) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    told = [(event["status"], event.get("queue_position")) for event in events]
    assert told == [("IN_QUEUE", 1), ("IN_QUEUE", 0), ("IN_PROGRESS", None), ("COMPLETED", None)]
    assert client.get(events[-1]["response_url"], headers=KEY).json()["images"]


def test_only_the_synchronous_form_refuses(fal: Ask, emulator: Emulator) -> None:
    emulator.configure(latency_s=5, max_concurrent=1)
    fal()
    refused = fal(path=SYNC)
    assert refused.status_code == 429
    assert refused.json()["error_type"] == "concurrent_requests_limit"
    assert refused.headers["x-fal-error-type"] == "concurrent_requests_limit"
    assert refused.headers["x-fal-needs-retry"] == "1"
    assert "retry-after" not in refused.headers


def test_a_request_that_does_not_begin_in_time(fal: Ask, client: httpx.Client, emulator: Emulator) -> None:
    emulator.configure(latency_s=5, max_concurrent=1)
    fal()
    body = {"prompt": "A hare", "image_size": "square"}
    late = client.post(PATH, json=body, headers={**KEY, "X-Fal-Request-Timeout": "0.05"}).json()
    with client.stream("GET", f"{late['status_url']}/stream", headers=KEY) as answer:
        last = json.loads([line for line in answer.iter_lines() if line.startswith("data:")][-1][5:])
    assert (last["status"], last["error_type"]) == ("COMPLETED", "request_timeout")
    assert client.get(late["response_url"], headers=KEY).status_code == 504
    assert emulator.stats()["queued"] == 0


def test_a_result_is_forgotten(fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator) -> None:
    submit = fal()
    assert follow(submit).status_code == 200
    emulator.configure(result_ttl_s=0)
    for name in ("status_url", "response_url"):
        assert client.get(submit.json()[name], headers=KEY).status_code == 404
    listed = client.get(LIST, params={"endpoint_id": MODEL, "expand": "payloads"}, headers=KEY).json()
    (item,) = listed["items"]
    assert client.get(item["json_output"]["images"][0]["url"]).status_code == 200


def test_the_synchronous_form_with_a_data_uri(fal: Ask, decode: Decode) -> None:
    answer = fal(path=SYNC, sync_mode=True, output_format="png", seed=None)
    result = answer.json()
    assert isinstance(result["seed"], int)
    assert result["images"][0]["url"].startswith("data:image/png;base64,")
    assert decode(result["images"][0]["url"]).format == "PNG"
    assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        (None, (1024, 768)),
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
    ],
)
def test_presets(
    fal: Ask, decode: Decode, emulator: Emulator, preset: str | None, size: tuple[int, int]
) -> None:
    emulator.configure(pictures="fast")
    answer = fal(path=SYNC, image_size=preset, sync_mode=True)
    assert decode(answer.json()["images"][0]["url"]).size == size


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"prompt": None}, ["body", "prompt"]),
        ({"prompt": " "}, ["body", "prompt"]),
        ({"prompt": 1}, ["body", "prompt"]),
        ({"prompt": "#fault:typo"}, ["body", "prompt"]),
        ({"image_size": "huge"}, ["body", "image_size"]),
        ({"image_size": {"width": 8, "height": 64}}, ["body", "image_size", "width"]),
        ({"image_size": {"width": 64, "height": 99999}}, ["body", "image_size", "height"]),
        ({"num_inference_steps": 13}, ["body", "num_inference_steps"]),
        ({"num_images": 9}, ["body", "num_images"]),
        ({"seed": "x"}, ["body", "seed"]),
        ({"sync_mode": "yes"}, ["body", "sync_mode"]),
        ({"output_format": "webp"}, ["body", "output_format"]),
    ],
)
def test_validation_errors(
    fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator, fields: dict[str, Any], loc: list[str]
) -> None:
    submit = fal(**fields)
    for answer in (fal(path=SYNC, **fields), follow(submit)):
        assert answer.status_code == 422
        (error,) = answer.json()["detail"]
        assert set(error) == {"loc", "msg", "type"}
        assert error["loc"] == loc
        assert "x-fal-error-type" not in answer.headers
    # The queue does not look into an input: its model does.
    assert submit.status_code == 200
    assert client.get(submit.json()["status_url"], headers=KEY).json()["status"] == "COMPLETED"
    assert emulator.bill()["images"] == 0


def test_unknown_requests_and_applications(client: httpx.Client, emulator: Emulator) -> None:
    root = f"{emulator.base_url}/fal-ai/flux/requests/none"
    for method, url in (("GET", root), ("GET", f"{root}/status"), ("PUT", f"{root}/cancel")):
        answer = client.request(method, url, headers=KEY)
        assert answer.status_code == 404
        assert isinstance(answer.json()["detail"], str)
    assert client.post("/fal-ai/other", json={}, headers=KEY).status_code == 404
    assert client.get("/nowhere").status_code == 404


def test_cancellation_is_not_charged(fal: Ask, client: httpx.Client, emulator: Emulator) -> None:
    emulator.configure(latency_s=5, latency_sigma=0, max_concurrent=1)
    running, waiting, last = (fal(seed=seed).json() for seed in range(3))
    for links in (waiting, running):
        answer = client.put(links["cancel_url"], headers=KEY)
        assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
        again = client.put(links["cancel_url"], headers=KEY)
        assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
        assert client.get(links["response_url"], headers=KEY).status_code == 499
        state = client.get(links["status_url"], headers=KEY).json()
        assert (state["status"], state["error_type"]) == ("COMPLETED", "client_cancelled")
    # The slot went to the one that is left.
    assert client.get(last["status_url"], headers=KEY).json()["status"] == "IN_PROGRESS"
    assert (emulator.stats()["in_flight"], emulator.stats()["queued"]) == (1, 0)
    assert emulator.bill()["images"] == 0
    emulator.configure(credit_images=2)
    assert fal().status_code == 200


def test_keys_and_credit(fal: Ask, client: httpx.Client, follow: Follow, emulator: Emulator) -> None:
    assert client.post("/fal-ai/flux/schnell", json={}).status_code == 401
    emulator.configure(api_keys=["k"], credit_images=1)
    assert fal(key="other").status_code == 401
    submit = fal()
    assert follow(submit).status_code == 200
    assert client.get(submit.json()["status_url"]).status_code == 401
    locked = fal()
    assert locked.status_code == 403
    assert locked.json()["detail"].startswith("User is locked. Reason: Exhausted balance")


def test_prices_round_up_to_whole_megapixels(fal: Ask, follow: Follow, emulator: Emulator) -> None:
    emulator.configure(pictures="fast")
    follow(fal(image_size="square"))
    follow(fal(image_size={"width": 1040, "height": 1024}))
    assert emulator.bill()["usd"] == pytest.approx(0.003 + 0.006)
    models = {line["model"] for line in emulator.bill()["by_key"].values()}
    assert models == {"fal-ai/flux/schnell"}


def test_links_expire_and_results_stay(
    fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator
) -> None:
    emulator.configure(link_ttl_s=0)
    submit = fal()
    url = follow(submit).json()["images"][0]["url"]
    assert client.get(url).status_code == 403
    emulator.configure(link_ttl_s=None)
    assert client.get(follow(submit).json()["images"][0]["url"]).status_code == 200
