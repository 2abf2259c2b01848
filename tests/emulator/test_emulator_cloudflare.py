"""Workers AI's wire format: a prompt in, a picture of the model's own size out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

Ask = Callable[..., httpx.Response]
Decode = Callable[[str | bytes], Image.Image]

MODEL = "@cf/black-forest-labs/flux-1-schnell"


@pytest.fixture
def ask(client: httpx.Client) -> Ask:
    def post(
        prompt: object = "A lighthouse", *, model: str = MODEL, key: str = "k", **fields: Any
    ) -> httpx.Response:
        path = f"/client/v4/accounts/0123abcd/ai/run/{model}"
        headers = {"Authorization": f"Bearer {key}"}
        return client.post(path, json={"prompt": prompt, **fields}, headers=headers)

    return post


def test_a_picture(ask: Ask, decode: Decode, emulator: Emulator) -> None:
    emulator.configure(pictures="fast")
    answers = [ask(width=512, height=512, seed=7).json() for _ in range(2)]
    for answer in answers:
        assert (answer["success"], answer["errors"], answer["messages"]) == (True, [], [])
        image = decode(answer["result"]["image"])
        assert (image.size, image.format) == ((1024, 1024), "JPEG")
    assert answers[0]["result"] != answers[1]["result"]
    assert emulator.bill()["usd"] == pytest.approx(2 * (4 * 0.0000528 + 4 * 0.0001056))


@pytest.mark.parametrize(
    ("prompt", "fields", "code"),
    [
        (" ", {}, 5006),
        ("x" * 2049, {}, 5006),
        ("A fox", {"steps": 9}, 5006),
        ("A fox", {"model": "@cf/other/model"}, 5007),
        ("A fox #fault:flagged", {}, 3030),
    ],
)
def test_invalid_inputs(ask: Ask, emulator: Emulator, prompt: str, fields: dict[str, Any], code: int) -> None:
    answer = ask(prompt, **fields)
    assert answer.status_code == 400
    assert (answer.json()["success"], answer.json()["result"]) == (False, None)
    assert answer.json()["errors"][0]["code"] == code
    assert emulator.bill()["images"] == 0


def test_capacity_and_neurons_are_both_a_429(ask: Ask, emulator: Emulator) -> None:
    emulator.configure(per_minute=2)
    assert ask().status_code == 200
    limited = ask()
    assert (limited.status_code, limited.json()["errors"][0]["code"]) == (429, 3040)
    emulator.configure(per_minute=None, credit_images=0)
    exhausted = ask()
    assert (exhausted.status_code, exhausted.json()["errors"][0]["code"]) == (429, 3036)
    emulator.configure(api_keys=("right",))
    refused = ask()
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, 10000)


def test_a_body_that_is_cut_off(ask: Ask) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        ask("A fox #fault:reset_body")
    assert ask("A fox #fault:fail").status_code == 500
