"""OpenAI itself and its dialect anywhere: addresses, fields by model, and what an image is charged at."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import httpx
import pytest

from imagemill.blocks.apis import PROVIDERS, GeneratedImage, OpenAICompatible
from imagemill.jobs import Job
from tests.blocks.apis.variants import make_job

PICTURE = b"\xff\xd8\xff\xfb\xef\xbe picture"
ENCODED = base64.b64encode(PICTURE).decode()
Answers = Callable[[httpx.Request], httpx.Response]


def image_of(api: OpenAICompatible, job: Job, answers: Answers) -> GeneratedImage:
    async def accepted(_: str, _charged_usd: float | None = None) -> None:
        """An image's link, kept until the image is there."""

    async def generate() -> GeneratedImage:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answers)) as http:
            return await api.generate(http, job, accepted)

    return anyio.run(generate)


def good(_: httpx.Request, headers: Mapping[str, str] | None = None, **more: Any) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"b64_json": ENCODED}], **more}, headers=headers)


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("", "https://api.openai.com/v1/images/generations"),
        ("https://api.openai.com", "https://api.openai.com/v1/images/generations"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1/images/generations"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/images/generations"),
        ("https://api.deepinfra.com/v1/openai", "https://api.deepinfra.com/v1/openai/images/generations"),
        ("https://g.example/v1beta/openai", "https://g.example/v1beta/openai/images/generations"),
        ("https://host.example/openai", "https://host.example/openai/images/generations"),
        ("http://gpu.internal:8000", "http://gpu.internal:8000/v1/images/generations"),
    ],
)
def test_a_base_url_with_a_path_is_used_as_given(base_url: str, address: str) -> None:
    api = OpenAICompatible(api_key="k", base_url=base_url)
    assert api.endpoint(make_job(api)) == address


@pytest.mark.parametrize(
    ("provider", "base_url", "address"),
    [
        ("together", "https://p.example", "https://p.example/v1/images/generations"),
        ("together", "https://p.example/together/v1", "https://p.example/together/v1/images/generations"),
        ("bfl", "https://api.eu.bfl.ai/v1", "https://api.eu.bfl.ai/v1/flux-dev"),
        ("fal", "https://queue.fal.run", "https://queue.fal.run/fal-ai/flux/schnell"),
    ],
)
def test_a_version_in_the_base_url_is_not_said_twice(provider: str, base_url: str, address: str) -> None:
    api = PROVIDERS[provider](api_key="k", base_url=base_url)
    job = make_job(api)
    assert api.endpoint(job) == address


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("gpt-image-2", False),
        ("gpt-image-1-mini", False),
        ("openai/gpt-image-2", False),
        ("chatgpt-image-latest", False),
        ("black-forest-labs/FLUX.1-schnell", True),
        ("dall-e-3", True),
    ],
)
def test_response_format_goes_only_to_models_that_take_it(model: str, named: bool) -> None:  # noqa: FBT001
    api = OpenAICompatible(api_key="k", model=model)
    assert ("response_format" in api.body(make_job(api))) is named


def test_at_openai_the_default_is_a_model_that_it_has() -> None:
    assert OpenAICompatible(api_key="k").model == "gpt-image-2"
    api = OpenAICompatible(api_key="k", base_url="http://gpu.internal:8000")
    assert api.model == "black-forest-labs/FLUX.1-schnell"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "litellm.UnsupportedParamsError: Setting `response_format` is not supported by openai, m."),
        (400, "Unknown parameter: 'response_format'."),
    ],
)
def test_a_server_that_refuses_response_format_is_asked_without_it(status: int, message: str) -> None:
    api = OpenAICompatible(api_key="k", base_url="http://litellm:4000", model="flux")
    asked: list[dict[str, Any]] = []

    def answers(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        if "response_format" in asked[-1]:
            return httpx.Response(status, json={"error": {"message": message, "code": str(status)}})
        return good(request)

    for _ in range(3):
        assert image_of(api, make_job(api), answers).content == PICTURE
    assert ["response_format" in body for body in asked] == [True, False, False, False]


def test_further_fields_are_sent_as_they_are() -> None:
    fields = {"quality": "low", "background": "opaque"}
    api = OpenAICompatible(api_key="k", model="gpt-image-2", extra_fields=fields)
    body = api.body(make_job(api))
    assert (body["quality"], body["background"]) == ("low", "opaque")
    assert "seed" not in body


TOKENS = {
    "input_tokens": 50,
    "output_tokens": 4160,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}


@pytest.mark.parametrize(
    ("model", "headers", "usage", "usd", "source"),
    [
        ("flux", {"x-litellm-response-cost": "0.0421"}, None, 0.0421, "told"),
        ("gpt-image-2", {"x-litellm-response-cost": "0.0421"}, TOKENS, 0.0421, "told"),
        ("gpt-image-2", {"x-litellm-response-cost": "None"}, TOKENS, 0.12505, "told"),
        ("gpt-image-2", {}, TOKENS, 0.12505, "told"),
        ("gpt-image-1-mini", {}, TOKENS, 0.03338, "told"),
        ("gpt-image-2", {}, {"output_tokens": "many"}, 0.25, "list"),
        ("flux", {}, TOKENS, 0.25, "list"),
        ("flux", {"x-litellm-response-cost": "-1"}, None, 0.25, "list"),
        ("flux", {"x-litellm-response-cost": "nan"}, None, 0.25, "list"),
    ],
)
def test_the_charge_is_what_the_server_says(
    model: str, headers: dict[str, str], usage: object, usd: float, source: str
) -> None:
    api = OpenAICompatible(api_key="k", model=model, usd_per_image=0.25)
    image = image_of(api, make_job(api), lambda r: good(r, headers, usage=usage))
    assert (image.cost_usd, image.cost_source) == (usd, source)


@pytest.mark.parametrize(
    "encoded",
    [
        base64.urlsafe_b64encode(PICTURE).decode(),
        base64.urlsafe_b64encode(PICTURE).decode().rstrip("="),
        ENCODED.rstrip("="),
        f"data:image/jpeg;base64,{ENCODED}",
        "\n".join(ENCODED[i : i + 8] for i in range(0, len(ENCODED), 8)),
    ],
)
def test_base64_is_read_in_every_spelling(encoded: str) -> None:
    api = OpenAICompatible(api_key="k")
    answer = httpx.Response(200, json={"data": [{"b64_json": encoded}]})
    assert image_of(api, make_job(api), lambda _: answer).content == PICTURE


@pytest.mark.parametrize(
    ("base_url", "link", "read_at"),
    [
        ("http://gpu:8000", "/files/a.png", "http://gpu:8000/files/a.png"),
        ("http://gpu:8000/v1", "/files/a.png", "http://gpu:8000/files/a.png"),
        ("http://gpu:8000/v1", "files/a.png?x=1", "http://gpu:8000/v1/files/a.png?x=1"),
        ("http://gpu:8000", "//gpu:8000/a.png", "http://gpu:8000/a.png"),
    ],
)
def test_a_relative_link_is_read_from_the_api(base_url: str, link: str, read_at: str) -> None:
    api = OpenAICompatible(api_key="k", base_url=base_url)
    asked: list[httpx.Request] = []

    def answers(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.method == "POST":
            return httpx.Response(200, json={"data": [{"url": link}]})
        return httpx.Response(200, content=PICTURE)

    assert image_of(api, make_job(api), answers).content == PICTURE
    assert str(asked[-1].url) == read_at
    assert "authorization" not in asked[-1].headers
