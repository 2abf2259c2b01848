"""fal's wire format: queue, result, cancellation, synchronous form, bill."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Follow = Callable[[httpx.Response], httpx.Response]
Decode = Callable[[str | bytes], Image.Image]

KEY = {"Authorization": "Key k"}


def test_the_queue(fal: Ask, client: httpx.Client, emulator: Emulator, decode: Decode) -> None:
    emulator.configure(latency_s=0.8, latency_sigma=0)
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
        "queue_position": 0,
    }
    early = client.get(root, headers=KEY)
    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
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
    assert seen == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    result = client.get(root, headers=KEY).json()
    picture = result["images"][0]
    assert (picture["width"], picture["height"]) == (128, 64)
    assert picture["content_type"] == "image/jpeg"
    assert (result["seed"], result["prompt"]) == (7, "A lighthouse")
    assert result["has_nsfw_concepts"] == [False]
    assert decode(client.get(picture["url"]).content).size == (128, 64)
    assert client.get(root, headers=KEY).json() == result
    assert emulator.bill()["images"] == 1
    assert emulator.stats()["polls"] > 2


def test_the_stream_of_a_requests_states(fal: Ask, client: httpx.Client, emulator: Emulator) -> None:
    emulator.configure(latency_s=0.3, latency_sigma=0)
    with client.stream("GET", f"{fal().json()['status_url']}/stream", headers=KEY) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]
    assert [event["status"] for event in events] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert client.get(events[-1]["response_url"], headers=KEY).json()["images"]


def test_the_synchronous_form_with_a_data_uri(fal: Ask, decode: Decode) -> None:
    answer = fal(path="/sync/fal-ai/flux/schnell", sync_mode=True, output_format="png", seed=None)
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
    answer = fal(path="/sync/fal-ai/flux/schnell", image_size=preset, sync_mode=True)
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
def test_validation_errors(fal: Ask, fields: dict[str, Any], loc: list[str]) -> None:
    answer = fal(**fields)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert set(error) == {"loc", "msg", "type"}
    assert error["loc"] == loc
    assert answer.headers["x-fal-error-type"] == "bad_request"


def test_unknown_requests_and_applications(client: httpx.Client, emulator: Emulator) -> None:
    root = f"{emulator.base_url}/fal-ai/flux/requests/none"
    for method, url in (("GET", root), ("GET", f"{root}/status"), ("PUT", f"{root}/cancel")):
        answer = client.request(method, url, headers=KEY)
        assert answer.status_code == 404
        assert isinstance(answer.json()["detail"], str)
    assert client.post("/fal-ai/other", json={}, headers=KEY).status_code == 404
    assert client.get("/nowhere").status_code == 404


def test_cancellation_is_not_charged(fal: Ask, client: httpx.Client, emulator: Emulator) -> None:
    emulator.configure(latency_s=5, latency_sigma=0)
    links = fal().json()
    answer = client.put(links["cancel_url"], headers=KEY)
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert emulator.stats()["in_flight"] == 0
    assert client.put(links["cancel_url"], headers=KEY).status_code == 400
    assert client.get(links["response_url"], headers=KEY).status_code == 499
    emulator.configure(latency_s=0)
    assert fal(path="/sync/fal-ai/flux/schnell").status_code == 200
    assert emulator.bill()["images"] == 1


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
    follow(fal(image_size="square_hd"))
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
