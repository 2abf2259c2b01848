"""Runware's wire format: arrays of tasks under the client's own UUIDs, past tasks, repeats, costs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Decode = Callable[[str | bytes], Image.Image]
Until = Callable[[Callable[[], bool]], None]


def inference(prompt: object = "A lighthouse", **fields: Any) -> dict[str, Any]:
    given = {
        "taskType": "imageInference",
        "taskUUID": str(uuid.uuid4()),
        "model": "runware:100@1",
        "positivePrompt": prompt,
        "width": 256,
        "height": 128,
        "seed": 7,
        "numberResults": 1,
        "outputType": "base64Data",
        "outputFormat": "PNG",
        "includeCost": True,
        **fields,
    }
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture
def ask(client: httpx.Client) -> Ask:
    def post(*tasks: object, key: str = "k") -> httpx.Response:
        return client.post("/v1", json=list(tasks), headers={"Authorization": f"Bearer {key}"})

    return post


def past(ask: Ask, task: dict[str, Any], kind: str = "getTaskDetails") -> httpx.Response:
    return ask({"taskType": kind, "taskUUID": task["taskUUID"]})


def test_a_task(ask: Ask, decode: Decode, emulator: Emulator) -> None:
    task = inference()
    answer = ask(task)
    assert answer.status_code == 200
    (item,) = answer.json()["data"]
    image = decode(item["imageBase64Data"])
    assert (image.size, image.format) == ((256, 128), "PNG")
    assert (item["taskUUID"], item["seed"], item["NSFWContent"]) == (task["taskUUID"], 7, False)
    assert item["cost"] == pytest.approx(emulator.bill()["usd"], abs=1e-9)
    assert "cost" not in ask(inference(includeCost=None)).json()["data"][0]


def test_links_and_data_uris(ask: Ask, client: httpx.Client, decode: Decode) -> None:
    link = ask(inference(outputType=None, outputFormat=None)).json()["data"][0]["imageURL"]
    assert decode(client.get(link).content).format == "JPEG"
    uri = ask(inference(outputType="dataURI", outputFormat="WEBP")).json()["data"][0]["imageDataURI"]
    assert uri.startswith("data:image/webp;base64,")


def test_each_task_of_an_array_has_its_own_fate(ask: Ask, emulator: Emulator) -> None:
    good, bad, several = inference(), inference(width=100), inference("A fox", numberResults=2)
    answer = ask(good, bad, several)
    assert answer.status_code == 200
    made = [item["taskUUID"] for item in answer.json()["data"]]
    assert made == [good["taskUUID"], several["taskUUID"], several["taskUUID"]]
    (error,) = answer.json()["errors"]
    assert (error["taskUUID"], error["parameter"], error["code"]) == (
        bad["taskUUID"],
        "width",
        "invalidWidth",
    )
    assert emulator.bill()["images"] == 3


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"taskUUID": "mine"}, "taskUUID"),
        ({"positivePrompt": " "}, "positivePrompt"),
        ({"model": "runware:1@1"}, "model"),
        ({"width": None}, "width"),
        ({"height": 2112}, "height"),
        ({"steps": 0}, "steps"),
        ({"outputType": "file"}, "outputType"),
        ({"outputFormat": "GIF"}, "outputFormat"),
        ({"deliveryMethod": "later"}, "deliveryMethod"),
    ],
)
def test_invalid_tasks(ask: Ask, fields: dict[str, Any], parameter: str) -> None:
    answer = ask(inference(**fields))
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["parameter"] == parameter


def test_bodies_that_are_no_tasks(ask: Ask, client: httpx.Client) -> None:
    assert ask("task").status_code == ask().status_code == 400
    assert ask({"taskType": "videoInference"}).json()["errors"][0]["parameter"] == "taskType"
    headers = {"Authorization": "Bearer k"}
    assert client.post("/v1", content=b"{", headers=headers).status_code == 400


def test_a_past_task_is_told_with_its_request(ask: Ask) -> None:
    task = inference()
    made = ask(task).json()
    (details,) = past(ask, task).json()["data"]
    assert details == {
        "taskType": "getTaskDetails",
        "taskUUID": task["taskUUID"],
        "request": [task],
        "response": made,
    }
    unknown = past(ask, inference())
    assert (unknown.status_code, unknown.json()["errors"][0]["taskType"]) == (404, "getTaskDetails")


def test_an_answer_that_was_lost_is_asked_for(ask: Ask, emulator: Emulator, client: httpx.Client) -> None:
    task = inference("A fox #fault:reset_body")
    with pytest.raises(httpx.RemoteProtocolError):
        ask(task)
    assert past(ask, task).json()["data"][0]["response"]["data"][0]["imageBase64Data"]
    client.timeout = httpx.Timeout(0.2)
    slow = inference("A fox #fault:timeout_after_charge")
    with pytest.raises(httpx.ReadTimeout):
        ask(slow)
    assert past(ask, slow).status_code == 200
    never = inference("A fox #fault:reset")
    with pytest.raises(httpx.ReadError):
        ask(never)
    assert past(ask, never).status_code == 404
    assert emulator.bill()["images"] == 2


def test_a_uuid_that_is_sent_twice(ask: Ask, emulator: Emulator) -> None:
    task = inference()
    first = ask(task)
    again = ask(task)
    assert (again.status_code, again.json()["errors"][0]["code"]) == (400, "conflictTaskUUID")
    emulator.configure(runware_repeats="answered")
    assert ask(task).json() == first.json()
    assert emulator.bill()["images"] == 1
    emulator.configure(runware_repeats="made_again")
    assert ask(task).status_code == 200
    assert emulator.bill()["images"] == 2


def test_a_refused_uuid_may_be_sent_again(ask: Ask, emulator: Emulator) -> None:
    task = inference("A fox #fault:503*1 #fault:429*1")
    assert [ask(task).status_code for _ in range(3)] == [503, 429, 200]
    assert emulator.bill()["images"] == 1


def test_asynchronous_delivery(ask: Ask, emulator: Emulator, until: Until) -> None:
    emulator.configure(latency_s=0.3, latency_sigma=0)
    task = inference(deliveryMethod="async")
    assert ask(task).json() == {"data": [{"taskType": "imageInference", "taskUUID": task["taskUUID"]}]}
    assert past(ask, task, "getResponse").json()["data"][0]["status"] == "processing"
    assert past(ask, task).status_code == 404
    until(lambda: emulator.stats()["in_flight"] == 0)
    (item,) = past(ask, task, "getResponse").json()["data"]
    assert item["status"] == "success"
    assert item["imageBase64Data"]
    failing = inference("A fox #fault:fail", deliveryMethod="async")
    ask(failing)
    until(lambda: emulator.stats()["in_flight"] == 0)
    assert past(ask, failing, "getResponse").json()["errors"][0]["status"] == "error"


def test_keys_credit_and_flags(ask: Ask, emulator: Emulator) -> None:
    assert ask(inference("A fox #fault:flagged")).json()["data"][0]["NSFWContent"] is True
    assert ask(inference("A fox #fault:fail")).json()["errors"][0]["code"] == "internalServerError"
    emulator.configure(credit_images=1)
    assert ask(inference()).status_code == 402
    emulator.configure(api_keys=("right",))
    refused = ask(inference())
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, "invalidApiKey")
