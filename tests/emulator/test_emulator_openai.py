"""The wire format that OpenAI made common, on the path that it shares with Together."""

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


@pytest.fixture
def ask(client: httpx.Client) -> Ask:
    """Ask for a small picture; None leaves a field out."""

    def post(prompt: object = "A lighthouse", *, key: str = "k", **fields: Any) -> httpx.Response:
        given = {"model": "flux", "prompt": prompt, "size": "128x64", "response_format": "b64_json", **fields}
        given = {name: value for name, value in given.items() if value is not None}
        return client.post("/v1/images/generations", json=given, headers={"Authorization": f"Bearer {key}"})

    return post


@pytest.mark.parametrize(
    ("fields", "image_format"),
    [({}, "PNG"), ({"output_format": "jpeg"}, "JPEG"), ({"output_format": "webp"}, "WEBP")],
)
@pytest.mark.parametrize("pictures", ["full", "fast"])
def test_pictures(
    ask: Ask, decode: Decode, emulator: Emulator, pictures: str, fields: dict[str, Any], image_format: str
) -> None:
    emulator.configure(pictures=pictures)
    contents = [ask(seed=seed, **fields).json()["data"][0]["b64_json"] for seed in (1, 2)]
    assert contents[0] != contents[1]
    for content in contents:
        image = decode(content)
        assert (image.size, image.format) == ((128, 64), image_format)
    assert emulator.bill()["usd"] == pytest.approx(2 * 0.003)


def test_a_link(ask: Ask, client: httpx.Client, decode: Decode) -> None:
    answer = ask(response_format="url").json()
    assert isinstance(answer["created"], int)
    assert decode(client.get(answer["data"][0]["url"]).content).size == (128, 64)


def test_the_size_may_be_left_to_the_server(ask: Ask, decode: Decode) -> None:
    for size in ("auto", None):
        content = ask(size=size, output_format="jpeg").json()["data"][0]["b64_json"]
        assert decode(content).size == (1024, 1024)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": " "}, "model"),
        ({"prompt": None}, "prompt"),
        ({"size": "big"}, "size"),
        ({"size": "32x64"}, "size"),
        ({"size": 5}, "size"),
        ({"n": 11}, "n"),
        ({"seed": "x"}, "seed"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "base64"}, "response_format"),
    ],
)
def test_invalid_fields(ask: Ask, emulator: Emulator, fields: dict[str, Any], param: str) -> None:
    answer = ask(**fields)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == param
    assert emulator.bill()["images"] == 0


@pytest.fixture
def gpt(ask: Ask) -> Ask:
    """Ask OpenAI itself, which takes no response_format."""

    def post(prompt: object = "A lighthouse", **fields: Any) -> httpx.Response:
        given = {"model": "gpt-image-2", "size": "1024x1024", **fields}
        return ask(prompt, response_format=None, **given)

    return post


def test_a_gpt_image(gpt: Ask, decode: Decode, emulator: Emulator) -> None:
    answer = gpt("A fox at night", size="1280x512", quality="low", output_format="webp").json()
    image = decode(answer["data"][0]["b64_json"])
    assert (image.size, image.format) == ((1280, 512), "WEBP")
    assert (answer["quality"], answer["size"], answer["output_format"]) == ("low", "1280x512", "webp")
    usage = answer["usage"]
    assert usage["output_tokens"] == 123
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] == 4
    assert emulator.bill()["usd"] == pytest.approx((4 * 5 + 123 * 30) / 1e6)


def test_a_gpt_image_costs_more_at_a_higher_quality(gpt: Ask, emulator: Emulator) -> None:
    emulator.configure(pictures="fast")
    tokens = [
        gpt(quality=quality).json()["usage"]["output_tokens"] for quality in ("low", "medium", "high", "auto")
    ]
    assert tokens == [196, 1756, 7024, 1756]
    assert gpt(quality="low", size="1536x1024").json()["usage"]["output_tokens"] == 158
    background = gpt(background="transparent", output_format="png").json()["background"]
    assert background == "transparent"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"seed": 7}, "seed", "unknown_parameter"),
        ({"steps": 4}, "steps", "unknown_parameter"),
        ({"style": "vivid"}, "style", "unknown_parameter"),
        ({"size": "1000x1000"}, "size", "invalid_value"),
        ({"size": "3072x512"}, "size", "invalid_value"),
        ({"size": "512x512"}, "size", "invalid_value"),
        ({"size": "3840x3840"}, "size", "invalid_value"),
        ({"model": "gpt-image-1.5", "size": "512x512"}, "size", "invalid_value"),
        ({"background": "transparent", "output_format": "jpeg"}, "background", "invalid_value"),
        ({"quality": "hd"}, "quality", None),
    ],
)
def test_what_openai_refuses(gpt: Ask, fields: dict[str, Any], param: str, code: str | None) -> None:
    answer = gpt(**fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_openai_refuses_response_format_and_models_that_are_gone(ask: Ask) -> None:
    refused = ask(model="gpt-image-2", size="1024x1024")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "unknown_parameter"
    assert refused.json()["error"]["message"] == "Unknown parameter: 'response_format'."
    for model in ("dall-e-3", "gpt-image-1"):
        gone = ask(model=model, response_format=None, size=None)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


def test_a_prompt_that_openai_flags(gpt: Ask) -> None:
    assert gpt("A fox #fault:flagged").json()["error"]["code"] == "moderation_blocked"


@pytest.mark.parametrize("prefix", ["/v1/openai", "/v1beta/openai", "/api/v3"])
def test_a_base_url_with_a_path_of_its_own(client: httpx.Client, prefix: str) -> None:
    body = {"model": "flux", "prompt": "A fox", "size": "64x64"}
    headers = {"Authorization": "Bearer k"}
    answer = client.post(f"{prefix}/images/generations", json=body, headers=headers)
    assert answer.status_code == 200


def test_limits_are_in_the_headers(ask: Ask, emulator: Emulator) -> None:
    emulator.configure(per_minute=2)
    assert ask().headers["x-ratelimit-remaining-requests"] == "0"
    limited = ask()
    assert limited.status_code == 429
    assert limited.headers["retry-after"] == "30"
    assert limited.headers["x-ratelimit-limit-requests"] == "1"
    assert limited.headers["x-ratelimit-reset-requests"].endswith("s")


def test_keys_credit_and_moderation(ask: Ask, emulator: Emulator) -> None:
    assert ask("A fox #fault:flagged").json()["error"]["code"] == "content_policy_violation"
    emulator.configure(credit_images=0)
    assert ask().json()["error"]["code"] == "insufficient_quota"
    emulator.configure(api_keys=("right",))
    assert ask().status_code == 401
