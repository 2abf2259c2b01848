"""Every fault, by prompt marker and by rate, and what it costs."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image, UnidentifiedImageError

from imagemill.emulator.faults import CHARGED, NAMES, STATUS, FaultPlan

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Follow = Callable[[httpx.Response], httpx.Response]
Decode = Callable[[str | bytes], Image.Image]
Until = Callable[[Callable[[], bool]], None]

SYNC = "/sync/fal-ai/flux/schnell"
TOGETHER = "/v1/images/generations"


def data(answer: httpx.Response) -> str:
    return answer.json()["data"][0]["b64_json"]


@pytest.mark.parametrize("name", sorted(STATUS))
def test_status_faults(together: Ask, fal: Ask, emulator: Emulator, name: str) -> None:
    answer = together(f"A fox #fault:{name}")
    assert answer.status_code == int(name)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    queued = fal(f"A fox #fault:{name}")
    assert queued.status_code == (403 if name == "402" else int(name))
    assert isinstance(queued.json()["detail"], str)
    assert queued.headers["x-fal-error-type"]
    for one in (answer, queued):
        assert one.headers.get("retry-after") == ("1" if name in {"429", "503"} else None)
    assert emulator.bill()["images"] == 0
    assert emulator.stats()["in_flight"] == 0


def test_markers_are_used_up_in_order(together: Ask, emulator: Emulator) -> None:
    prompt = "A fox #fault:500*2 #fault:429*1 at night #fault:truncated*1"
    statuses = [together(prompt).status_code for _ in range(5)]
    assert statuses == [500, 500, 429, 200, 200]
    assert emulator.bill()["images"] == 2
    assert together(prompt + "!").status_code == 500
    emulator.reset()
    assert together(prompt).status_code == 500


def test_a_marker_without_a_count_stays(together: Ask) -> None:
    assert {together("A fox #fault:503").status_code for _ in range(4)} == {503}


@pytest.mark.parametrize("post", ["together", "fal"])
def test_hang(
    request: pytest.FixtureRequest,
    client: httpx.Client,
    emulator: Emulator,
    until: Until,
    post: str,
) -> None:
    ask = request.getfixturevalue(post)
    emulator.configure(max_concurrent=1)
    client.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        ask("A fox #fault:hang*1")
    until(lambda: emulator.stats()["in_flight"] == 0)
    client.timeout = httpx.Timeout(5)
    emulator.configure(hang_s=0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        ask("Another fox #fault:hang*1")
    until(lambda: emulator.stats()["in_flight"] == 0)
    assert ask("A fox #fault:hang*1").status_code == 200
    outcomes = [outcomes for outcomes in emulator.stats()["requests"].values() if "hang" in outcomes]
    assert outcomes == [{"hang": 2, "200": 1}]


def test_timeout_after_charge(
    together: Ask, fal: Ask, client: httpx.Client, emulator: Emulator, until: Until
) -> None:
    client.timeout = httpx.Timeout(0.2)
    for ask, fields in ((together, {}), (fal, {"path": SYNC})):
        emulator.reset()
        with pytest.raises(httpx.ReadTimeout):
            ask("A fox #fault:timeout_after_charge*1", **fields)
        until(lambda: emulator.bill()["images"] == 1)
        assert emulator.stats()["in_flight"] == 0
    emulator.reset()
    links = fal("A hare #fault:timeout_after_charge*1").json()
    until(lambda: emulator.bill()["images"] == 1)
    status = client.get(links["status_url"], headers={"Authorization": "Key k"})
    assert status.json()["status"] == "IN_PROGRESS"


def test_reset_comes_before_any_byte(emulator: Emulator, client: httpx.Client, fal: Ask) -> None:
    body = b'{"model":"black-forest-labs/FLUX.1-schnell","prompt":"#fault:reset"}'
    head = f"POST {TOGETHER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
    with socket.create_connection(("127.0.0.1", emulator.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        with pytest.raises(ConnectionResetError):
            raw.recv(1)
    with pytest.raises(httpx.ReadError):
        fal("A fox #fault:reset")
    assert emulator.bill()["images"] == 0
    assert client.get("/__stats").json()["in_flight"] == 0


@pytest.mark.parametrize("size", [128, 1792])
def test_reset_body_of_an_answer(client: httpx.Client, emulator: Emulator, size: int) -> None:
    body = {
        "model": "black-forest-labs/FLUX.1-schnell",
        "prompt": "A fox #fault:reset_body",
        "width": size,
        "height": size,
        "response_format": "base64",
        "output_format": "png",
    }
    headers = {"Authorization": "Bearer k"}
    with client.stream("POST", TOGETHER, json=body, headers=headers) as answer:
        assert answer.status_code == 200
        length = int(answer.headers["content-length"])
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            answer.read()
    assert answer.num_bytes_downloaded == length // 2
    assert emulator.bill()["images"] == 1


def test_reset_body_of_a_file_hits_the_first_download(
    together: Ask, client: httpx.Client, emulator: Emulator, decode: Decode
) -> None:
    url = together("A fox #fault:reset_body", response_format="url").json()["data"][0]["url"]
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(url)
    assert decode(client.get(url).content).size == (128, 64)
    assert emulator.bill()["images"] == 1


@pytest.mark.parametrize("name", ["truncated", "garbage"])
def test_spoilt_pictures_inline(
    together: Ask, fal: Ask, emulator: Emulator, decode: Decode, name: str
) -> None:
    prompt = f"A fox #fault:{name}"
    result = fal(prompt, path=SYNC, sync_mode=True).json()
    for content in (data(together(prompt)), result["images"][0]["url"]):
        with pytest.raises(OSError, match=r"truncated|identify"):
            decode(content)
    assert emulator.bill()["images"] == 2


@pytest.mark.parametrize("name", ["truncated", "garbage"])
def test_spoilt_pictures_behind_links(
    together: Ask, fal: Ask, follow: Follow, client: httpx.Client, decode: Decode, name: str
) -> None:
    prompt = f"A fox #fault:{name}"
    links = [
        together(prompt, response_format="url").json()["data"][0]["url"],
        follow(fal(prompt)).json()["images"][0]["url"],
    ]
    for link in links:
        with pytest.raises(OSError, match=r"truncated|identify"):
            decode(client.get(link).content)


def test_truncated_pictures_still_open(together: Ask) -> None:
    image = base64.b64decode(data(together("A fox #fault:truncated")))
    with Image.open(io.BytesIO(image)) as opened:
        assert opened.size == (128, 64)
    garbage = base64.b64decode(data(together("A fox #fault:garbage")))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(garbage))


def test_html_and_wrong_shape(together: Ask, fal: Ask, emulator: Emulator) -> None:
    for ask in (together, fal):
        page = ask("A fox #fault:html")
        assert (page.status_code, page.headers["content-type"][:9]) == (200, "text/html")
        other = ask("A fox #fault:wrong_shape")
        assert other.status_code == 200
        assert not {"data", "images", "request_id"} & set(other.json())
    assert emulator.bill()["images"] == 0


def test_wrong_size(together: Ask, fal: Ask, decode: Decode, emulator: Emulator) -> None:
    assert decode(data(together("A fox #fault:wrong_size"))).size == (64, 32)
    result = fal("A fox #fault:wrong_size", path=SYNC, sync_mode=True).json()
    assert decode(result["images"][0]["url"]).size == (64, 32)
    assert emulator.bill()["images"] == 2
    assert {line["width"] for line in emulator.bill()["by_key"].values()} == {128}


def test_black_and_flagged(together: Ask, fal: Ask, decode: Decode, emulator: Emulator) -> None:
    black = decode(data(together("A fox #fault:black")))
    assert black.convert("L").getextrema() == (0, 0)
    flagged = together("A fox #fault:flagged")
    assert flagged.status_code == 422
    assert flagged.json()["error"]["code"] == "content_policy_violation"
    assert emulator.bill()["images"] == 1
    for name in ("black", "flagged"):
        result = fal(f"A fox #fault:{name}", path=SYNC, sync_mode=True).json()
        assert result["has_nsfw_concepts"] == [True]
        picture = decode(result["images"][0]["url"])
        assert picture.convert("L").getextrema() == (0, 0)
    assert emulator.bill()["images"] == 3


def test_an_expired_link_works_when_the_result_is_asked_again(
    fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator
) -> None:
    submit = fal("A fox #fault:expired_link")
    first = follow(submit).json()["images"][0]["url"]
    assert client.get(first).status_code == 403
    again = follow(submit).json()["images"][0]["url"]
    assert client.get(again).status_code == 200
    assert emulator.bill()["images"] == 1


def test_an_expired_link_of_together_needs_another_generation(
    together: Ask, client: httpx.Client, emulator: Emulator
) -> None:
    prompt = "A fox #fault:expired_link*1"
    urls = [together(prompt, response_format="url").json()["data"][0]["url"] for _ in range(2)]
    assert [client.get(url).status_code for url in urls] == [403, 200]
    assert emulator.bill()["images"] == 2


def test_fail_ends_in_an_error_result(
    together: Ask, fal: Ask, follow: Follow, client: httpx.Client, emulator: Emulator
) -> None:
    submit = fal("A fox #fault:fail*1")
    result = follow(submit)
    assert (result.status_code, result.json()["error_type"]) == (500, "runner_server_error")
    status = client.get(submit.json()["status_url"], headers={"Authorization": "Key k"}).json()
    assert (status["status"], status["error_type"]) == ("COMPLETED", "runner_server_error")
    assert follow(fal("A fox #fault:fail*1")).status_code == 200
    assert fal("A hare #fault:fail", path=SYNC).status_code == 500
    assert together("A fox #fault:fail").status_code == 500
    assert emulator.bill()["images"] == 1


def test_rates_are_deterministic_in_seed_and_arrival(together: Ask, emulator: Emulator) -> None:
    def statuses() -> list[int]:
        emulator.reset()
        return [together(seed=number).status_code for number in range(60)]

    emulator.configure(faults={"500": 0.3, "429": 0.2}, seed=5)
    first = statuses()
    assert first == statuses()
    assert set(first) == {200, 429, 500}
    assert emulator.bill()["images"] == first.count(200)
    emulator.configure(seed=6)
    assert statuses() != first


def test_rates_over_many_draws() -> None:
    plan = FaultPlan({"500": 0.1, "black": 0.05}, seed=1)
    drawn = [plan.draw("A fox", number) for number in range(10_000)]
    assert 900 < drawn.count("500") < 1100
    assert 430 < drawn.count("black") < 570


def test_prompts_with_markers_are_exempt_from_rates(together: Ask, emulator: Emulator) -> None:
    emulator.configure(faults={"500": 1})
    assert together().status_code == 500
    assert together("A fox #fault:429*1").status_code == 429
    assert together("A fox #fault:429*1").status_code == 200


def test_charged_faults_are_faults() -> None:
    assert CHARGED < NAMES
