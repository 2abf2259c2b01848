"""Replicate's and Black Forest Labs' wire formats: submit, poll, links, cancellation, errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Decode = Callable[[str | bytes], Image.Image]

PREDICTIONS = "/v1/models/black-forest-labs/flux-schnell/predictions"


@pytest.fixture
def replicate(client: httpx.Client) -> Ask:
    """Create a prediction of a small picture; None leaves a field out."""

    def ask(
        prompt: object = "A lighthouse",
        *,
        path: str = PREDICTIONS,
        prefer: str = "",
        key: str = "k",
        **fields: Any,
    ) -> httpx.Response:
        given = {"prompt": prompt, "megapixels": "0.25", "seed": 7, "output_format": "png", **fields}
        given = {name: value for name, value in given.items() if value is not None}
        headers = {"Authorization": f"Bearer {key}", "Prefer": prefer}
        return client.post(path, json={"input": given}, headers=headers)

    return ask


@pytest.fixture
def bfl(client: httpx.Client) -> Ask:
    """Submit a small picture to Black Forest Labs."""

    def ask(
        prompt: object = "A lighthouse", *, model: str = "flux-dev", key: str = "k", **fields: Any
    ) -> httpx.Response:
        given = {"prompt": prompt, "width": 256, "height": 256, "seed": 7, "output_format": "png", **fields}
        given = {name: value for name, value in given.items() if value is not None}
        return client.post(f"/v1/{model}", json=given, headers={"x-key": key})

    return ask


@pytest.fixture
def ended(client: httpx.Client) -> Callable[[httpx.Response], dict[str, Any]]:
    """Poll to the end of what was submitted, at either vendor."""

    def poll(submit: httpx.Response) -> dict[str, Any]:
        content = submit.json()
        url = content.get("polling_url") or content["urls"]["get"]
        deadline = time.monotonic() + 10
        while True:
            answer = client.get(url, headers={"x-key": "k", "Authorization": "Bearer k"})
            state: dict[str, Any] = answer.json()
            if state["status"] not in {"Pending", "starting", "processing"}:
                return state
            assert time.monotonic() < deadline, "The request was not completed in time."

    return poll


Ended = Callable[[httpx.Response], dict[str, Any]]


def test_a_prediction(
    replicate: Ask, ended: Ended, client: httpx.Client, emulator: Emulator, decode: Decode
) -> None:
    emulator.configure(latency_s=0.2, latency_sigma=0)
    submit = replicate(aspect_ratio="16:9")
    assert submit.status_code == 201
    assert submit.json()["status"] == "starting"
    assert submit.json()["output"] is None
    prediction = ended(submit)
    assert prediction["status"] == "succeeded"
    assert prediction["metrics"]["predict_time"] == 0.2
    image = decode(client.get(prediction["output"][0]).content)
    assert (image.size, image.format) == ((672, 384), "PNG")
    assert emulator.bill()["usd"] == pytest.approx(0.003)
    assert emulator.stats()["polls"] > 1


def test_prefer_wait(replicate: Ask, ended: Ended, emulator: Emulator) -> None:
    assert replicate(prefer="wait").json()["status"] == "succeeded"
    emulator.configure(latency_s=1.5, latency_sigma=0)
    begun = time.monotonic()
    waited = replicate(prefer="wait=1")
    assert waited.json()["status"] == "processing"
    assert 0.9 < time.monotonic() - begun < 1.4
    assert ended(waited)["status"] == "succeeded"


def test_a_canceled_prediction_is_not_billed(
    replicate: Ask, ended: Ended, client: httpx.Client, emulator: Emulator
) -> None:
    emulator.configure(latency_s=5, latency_sigma=0)
    submit = replicate()
    canceled = client.post(submit.json()["urls"]["cancel"], headers={"Authorization": "Bearer k"})
    assert canceled.json()["status"] == "canceled"
    assert ended(submit)["status"] == "canceled"
    assert emulator.bill()["images"] == 0
    assert emulator.stats()["in_flight"] == 0


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "A fox #fault:typo"}, "prompt"),
        ({"aspect_ratio": "7:5"}, "aspect_ratio"),
        ({"megapixels": 1}, "megapixels"),
        ({"num_inference_steps": 5}, "num_inference_steps"),
        ({"output_format": "jpeg"}, "output_format"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_invalid_inputs_of_replicate(replicate: Ask, fields: dict[str, Any], name: str) -> None:
    answer = replicate(**fields)
    assert answer.status_code == 422
    assert set(answer.json()) == {"title", "detail", "status"}
    assert answer.json()["detail"].startswith(f"- input.{name}: ")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"prompt": None}, ["body", "prompt"]),
        ({"width": 250}, ["body", "width"]),
        ({"height": 1472}, ["body", "height"]),
        ({"output_format": "webp"}, ["body", "output_format"]),
    ],
)
def test_invalid_inputs_of_black_forest_labs(bfl: Ask, fields: dict[str, Any], place: list[str]) -> None:
    answer = bfl(**fields)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == place


def test_inputs_and_outputs_of_replicate_are_removed(
    replicate: Ask, ended: Ended, client: httpx.Client, emulator: Emulator
) -> None:
    submit = replicate()
    assert ended(submit)["data_removed"] is False
    emulator.configure(result_ttl_s=0)
    gone = client.get(submit.json()["urls"]["get"], headers={"Authorization": "Bearer k"}).json()
    assert (gone["data_removed"], gone["input"], gone["output"]) == (True, {}, None)
    assert gone["status"] == "succeeded"


def test_a_model_tells_its_schema(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer k"}
    model = client.get("/v1/models/black-forest-labs/flux-schnell", headers=headers).json()
    fields = model["latest_version"]["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert fields["num_inference_steps"]["maximum"] == 4
    assert client.get("/v1/models/other/model", headers=headers).status_code == 404
    assert client.get("/v1/models/other/model").status_code == 401


@pytest.mark.parametrize(
    ("model", "size", "cost"),
    [
        ("flux-2-klein-4b", (1024, 1024), 1.4),
        ("flux-2-klein-9b", (512, 512), 1.5),
        ("flux-2-pro", (2048, 1040), 6.0),
        ("flux-2-max", (64, 64), 7.0),
    ],
)
def test_a_submit_tells_what_it_costs(
    bfl: Ask, ended: Ended, emulator: Emulator, model: str, size: tuple[int, int], cost: float
) -> None:
    emulator.configure(pictures="fast")
    submit = bfl(model=model, width=size[0], height=size[1])
    assert submit.json()["cost"] == cost
    ended(submit)
    assert emulator.bill()["usd"] == pytest.approx(cost / 100)


def test_sizes_of_flux_2(bfl: Ask) -> None:
    for size in ((100, 64), (48, 64), (4096, 1040)):
        assert bfl(model="flux-2-pro", width=size[0], height=size[1]).status_code == 422
    assert bfl(model="flux-schnell").status_code == 404


def test_throttled(replicate: Ask, emulator: Emulator) -> None:
    emulator.configure(per_minute=2)
    assert replicate().status_code == 201
    throttled = replicate()
    assert throttled.status_code == 429
    assert throttled.headers["retry-after"] == "30"
    assert throttled.json()["detail"] == "Request was throttled. Your rate limit resets in ~30s."
    assert throttled.json()["retry_after"] == 30
    emulator.configure(retry_after=False)
    assert "retry-after" not in replicate().headers


def test_a_task(bfl: Ask, ended: Ended, client: httpx.Client, emulator: Emulator, decode: Decode) -> None:
    submit = bfl(model="flux-pro-1.1")
    name = submit.json()["id"]
    assert submit.json()["polling_url"] == f"{emulator.base_url}/v1/get_result?id={name}"
    assert ended(submit)["status"] == "Ready"
    task = ended(bfl())
    assert (task["status"], task["result"]["seed"]) == ("Ready", 7)
    link = task["result"]["sample"]
    assert decode(client.get(link).content).size == (256, 256)
    assert client.get(link.partition("?")[0]).status_code == 403
    assert emulator.bill()["usd"] == pytest.approx(0.025 + 0.04)


def test_what_is_in_flight_at_a_reset_is_not_on_the_new_bill(
    replicate: Ask, ended: Ended, emulator: Emulator
) -> None:
    emulator.configure(latency_s=0.3)
    submit = replicate()
    emulator.reset()
    assert ended(submit)["status"] == "succeeded"
    assert emulator.bill()["images"] == 0


def test_states_of_tasks(
    bfl: Ask, replicate: Ask, ended: Ended, client: httpx.Client, emulator: Emulator
) -> None:
    assert ended(bfl("A fox #fault:flagged"))["status"] == "Request Moderated"
    assert ended(bfl("A fox #fault:fail"))["status"] == "Error"
    assert "NSFW" in ended(replicate("A fox #fault:flagged"))["error"]
    assert ended(replicate("A fox #fault:fail"))["status"] == "failed"
    assert emulator.bill()["images"] == 0
    unknown = client.get("/v1/get_result?id=none", headers={"x-key": "k"})
    assert (unknown.status_code, unknown.json()["status"]) == (200, "Task not found")
    assert client.get("/v1/predictions/none", headers={"Authorization": "Bearer k"}).status_code == 404


def test_links_expire_for_good(bfl: Ask, replicate: Ask, ended: Ended, client: httpx.Client) -> None:
    for submit in (bfl("A fox #fault:expired_link"), replicate("A fox #fault:expired_link")):
        links = []
        for _ in range(2):
            state = ended(submit)
            links.append(state["output"][0] if "output" in state else state["result"]["sample"])
            assert client.get(links[-1]).status_code == 403
        assert links[0] == links[1]


def test_keys_and_credit(bfl: Ask, replicate: Ask, emulator: Emulator, client: httpx.Client) -> None:
    emulator.configure(api_keys=("right",), credit_images=0)
    assert bfl().status_code == 403
    assert replicate().status_code == 401
    assert client.get("/v1/get_result?id=1", headers={"x-key": "wrong"}).status_code == 403
    assert client.get("/v1/predictions/1").status_code == 401
    assert bfl(key="right").status_code == 402
    assert replicate(key="right").status_code == 402
    assert bfl(key="right", model="flux-9").status_code == 404
    assert replicate(key="right", path="/v1/models/other/model/predictions").status_code == 404


def test_limits_and_faults_of_the_submit(bfl: Ask, replicate: Ask, emulator: Emulator) -> None:
    for name in ("400", "402", "429", "500", "503"):
        for ask in (bfl, replicate):
            assert ask(f"A fox #fault:{name}").status_code == int(name)
    emulator.configure(per_minute=2)
    assert bfl().status_code == 200
    throttled = bfl()
    assert throttled.json()["retry_after"] == int(throttled.headers["retry-after"]) == 30
    emulator.configure(per_minute=None, max_concurrent=1, latency_s=5)
    assert bfl().status_code == 200
    refused = bfl()
    assert refused.status_code == 429
    assert set(refused.json()) == {"error", "message"}
    assert refused.headers["x-ratelimit-limit"] == "1"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert replicate().status_code == 429


def test_huge_bodies_are_refused(client: httpx.Client) -> None:
    for path in (PREDICTIONS, "/v1/flux-dev"):
        assert client.post(path, content=b"x" * 1_000_001).status_code == 413
