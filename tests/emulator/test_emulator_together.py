"""Together's wire format, keys, credit and bill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Decode = Callable[[str | bytes], Image.Image]

MODEL = "black-forest-labs/FLUX.1-schnell"


def test_a_base64_answer(together: Ask, decode: Decode) -> None:
    answer = together(steps=2)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["object"]) == (MODEL, "list")
    assert body["data"][0]["index"] == 0
    image = decode(body["data"][0]["b64_json"])
    assert (image.format, image.size) == ("JPEG", (128, 64))


def test_a_link_is_the_default(
    together: Ask, client: httpx.Client, emulator: Emulator, decode: Decode
) -> None:
    url = together(response_format=None, output_format="png").json()["data"][0]["url"]
    assert url.startswith(f"{emulator.base_url}/files/")
    assert url.endswith(".png")
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert decode(answer.content).format == "PNG"
    assert emulator.stats()["downloads"] == 1


def test_defaults_are_1024_by_1024_and_jpeg(together: Ask, decode: Decode) -> None:
    image = decode(together(width=None, height=None).json()["data"][0]["b64_json"])
    assert (image.format, image.size) == ("JPEG", (1024, 1024))


def test_links_follow_the_host_of_the_request(client: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "A fox", "width": 64, "height": 64}
    headers = {"Authorization": "Bearer k", "Host": "images.example:81"}
    answer = client.post("/v1/images/generations", json=body, headers=headers)
    assert answer.json()["data"][0]["url"].startswith("http://images.example:81/files/")


def test_several_pictures_differ(together: Ask, emulator: Emulator) -> None:
    data = together(n=3).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2]
    assert len({item["b64_json"] for item in data}) == 3
    assert emulator.bill()["images"] == 3


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": "  \n"}, 400, "prompt"),
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": "A fox #fault:typo"}, 400, "prompt"),
        ({"width": 100}, 400, "width"),
        ({"width": 48}, 400, "width"),
        ({"height": 2064}, 400, "height"),
        ({"height": 10**30}, 400, "height"),
        ({"height": "64"}, 400, "height"),
        ({"width": True}, 400, "width"),
        ({"steps": 0}, 400, "steps"),
        ({"steps": 13}, 400, "steps"),
        ({"n": 5}, 400, "n"),
        ({"seed": 1.5}, 400, "seed"),
        ({"output_format": "webp"}, 400, "output_format"),
        ({"response_format": ["url"]}, 400, "response_format"),
        ({"model": None}, 400, "model"),
        ({"model": "other/model"}, 404, "model"),
    ],
)
def test_invalid_fields(
    together: Ask, emulator: Emulator, fields: dict[str, Any], status: int, param: str
) -> None:
    answer = together(**fields)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert emulator.bill()["images"] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"prompt": "\\ud800"}', b"[" * 100_000, b"\xff", b"9" * 5000],
)
def test_hostile_bodies(client: httpx.Client, body: bytes) -> None:
    headers = {"Authorization": "Bearer k"}
    answer = client.post("/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400


def test_huge_bodies_are_refused(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer k"}
    body = b"x" * 1_000_001
    answer = client.post("/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(11):
            yield b"x" * 100_000

    answer = client.post("/v1/images/generations", content=parts(), headers=headers)
    assert answer.status_code == 413


def test_keys(together: Ask, client: httpx.Client, emulator: Emulator) -> None:
    assert client.post("/v1/images/generations", json={}).status_code == 401
    assert together(key="").status_code == 401
    emulator.configure(api_keys=("right", "too"))
    assert together(key="wrong").status_code == 401
    assert together(key="right").status_code == 200


def test_credit_is_exact_under_concurrency(together: Ask, emulator: Emulator) -> None:
    emulator.configure(credit_images=3, latency_s=0.05, latency_sigma=0)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: together(seed=number), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [402] * 5
    assert emulator.bill()["images"] == 3
    refused = next(answer for answer in answers if answer.status_code == 402)
    assert refused.json()["error"]["code"] == "insufficient_credit"


def test_the_bill(together: Ask, emulator: Emulator, client: httpx.Client) -> None:
    for seed in (1, 1, 2):
        together("Zwölf Füchse", seed=seed, steps=6)
    bill = emulator.bill()
    assert bill == client.get("/__bill").json()
    assert bill["images"] == 3
    assert bill["usd"] == pytest.approx(3 * 0.0027 * 128 * 64 / 1e6 * 6 / 4, rel=1e-12)
    asked = {
        "height": 64,
        "model": MODEL,
        "prompt": "Zwölf Füchse",
        "provider": "together",
        "seed": 1,
        "steps": 6,
        "width": 128,
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    line = bill["by_key"][hashlib.sha256(text.encode()).hexdigest()]
    assert line == {**asked, "count": 2, "usd": pytest.approx(2 * 0.0027 * 128 * 64 / 1e6 * 6 / 4)}


def test_pictures_are_deterministic(together: Ask) -> None:
    def data(prompt: str = "A lighthouse", **fields: Any) -> str:
        return together(prompt, **fields).json()["data"][0]["b64_json"]

    assert data(seed=5) == data(seed=5)
    assert len({data(seed=5), data(seed=6), data(seed=5, width=64), data("A fox", seed=5)}) == 4


def test_fast_pictures_are_unique_and_decode(together: Ask, emulator: Emulator, decode: Decode) -> None:
    emulator.configure(pictures="fast")
    for file_format in ("jpeg", "png"):
        answers = [
            together(seed=seed, output_format=file_format).json()["data"][0]["b64_json"] for seed in (1, 2, 1)
        ]
        assert answers[0] == answers[2] != answers[1]
        assert [decode(answer).size for answer in answers] == [(128, 64)] * 3
