"""Fuzz targets that read what an API answers: images, states, lists, errors, streams, schemas and prices."""

from __future__ import annotations

import base64
import functools
import gzip
import math
import random
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import httpx
import orjson

from imagemill.blocks.apis import PROVIDERS, Fal, ImageApi, Replicate
from imagemill.blocks.apis.exchange import MAX_LINK_LENGTH
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.errors import ApiError, InputError
from imagemill.jobs import Job
from imagemill.models.published import published_price, published_profile
from tests.fuzz.files import _pictures
from tests.fuzz.spoiling import spoilt_bytes, spoilt_json
from tests.virtual_time import run

APIS: dict[str, Callable[[], ImageApi]] = {
    "together": lambda: PROVIDERS["together"](api_key="k"),
    "openai": lambda: PROVIDERS["openai"](api_key="k", model="gpt-image-1"),
    "fal": lambda: Fal(api_key="k", request_timeout_s=5, queue_timeout_s=5),
    "fal_at_once": lambda: Fal(api_key="k", queued=False, request_timeout_s=5),
    "replicate": lambda: Replicate(api_key="k", request_timeout_s=5, queue_timeout_s=5),
    "replicate_waiting": lambda: Replicate(api_key="k", request_timeout_s=5, queue_timeout_s=5, wait_s=60),
    "bfl": lambda: PROVIDERS["bfl"](api_key="k", request_timeout_s=5, queue_timeout_s=5),
    "runware": lambda: PROVIDERS["runware"](api_key="k", request_timeout_s=5),
    "cloudflare": lambda: PROVIDERS["cloudflare"](api_key="k", account="a"),
}

_HOSTS = {
    "together": "https://api.together.ai/a.png", "openai": "https://api.openai.com/a.png",
    "fal": "https://v3.fal.media/a.png", "replicate": "https://replicate.delivery/a.png",
    "bfl": "https://delivery.bfl.ai/a.png", "runware": "https://im.runware.ai/a.png", "cloudflare": "/a.png",
}  # fmt: skip
_LINKS = (*_HOSTS.values(), "https://example.com/a.png", "/a.png")
_IMAGE = base64.b64encode(_pictures()[0]).decode()
_BAD = {"message": "HTTP 429: resets in ~30s", "code": "rate_limited", "type": "x", "param": None}

_OPENAI = (
    {"data": [{"b64_json": _IMAGE}], "usage": {"input_tokens": 10, "output_tokens": 100,
     "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}}},
    {"data": [{"url": "L"}], "object": "list"}, {"error": _BAD},
)  # fmt: skip
_DOCUMENTS: dict[str, tuple[dict[str, Any], ...]] = {
    "together": _OPENAI,
    "openai": _OPENAI,
    "fal": (
        {"request_id": "r", "status": "IN_QUEUE", "queue_position": 3, "status_url": "L"},
        {"status": "IN_PROGRESS", "metrics": {"inference_time": 0.2}}, {"status": "COMPLETED", "error": "x"},
        *({"request_id": "r", "status": "COMPLETED", "images": [{"url": "L", "width": 64}],
           "has_nsfw_concepts": [False], "seed": 7},) * 4,
        {"items": [{"request_id": "r", "status_code": 200, "json_input": {"prompt": "p"},
         "json_output": {"images": [{"url": "L"}]}}], "next_cursor": "c", "has_more": True},
        {"detail": [{"loc": ["body", "prompt"], "msg": "field required", "type": "value_error"}]},
    ),
    "replicate": (
        {"id": "p", "status": "starting"}, {"id": "p", "status": "failed", "error": "NSFW content"},
        *({"id": "p", "status": "succeeded", "output": ["L"], "metrics": {"predict_time": 1.0}},) * 3,
        {"id": "p", "status": "canceled"}, {"id": "p", "status": "succeeded", "data_removed": True},
        {"results": [{"id": "p", "model": "black-forest-labs/flux-schnell", "status": "succeeded",
         "input": {"prompt": "p"}}], "next": "https://api.replicate.com/v1/predictions?cursor=c"},
    ),
    "bfl": (
        *({"id": "t", "polling_url": "https://api.bfl.ai/v1/get_result?id=t", "cost": 3, "status": "Ready",
           "result": {"sample": "L"}},) * 3,
        {"status": "Pending", "progress": 0.5}, {"status": "Request Moderated", "details": {}},
        {"status": "Task not found"}, {"credits": 5.0}, {"status": "Error", "details": {"x": 1}},
    ),
    "runware": (
        *({"data": [{"taskUUID": "t", "imageURL": "L", "cost": 0.0013, "NSFWContent": False}]},) * 2,
        {"data": [{"taskUUID": "t", "response": {"data": [{"imageURL": "L", "cost": 0.0013}]}}]},
        {"errors": [_BAD | {"parameter": "steps", "taskUUID": "t"}]},
        {"errors": [_BAD | {"code": "conflictTaskUUID"}]},
    ),
    "cloudflare": (
        *({"result": {"image": _IMAGE}, "success": True},) * 2, {"result": [{"name": "@cf/x"}]},
        {"errors": [{"code": 3036, "message": "used up"}], "success": False}, {"detail": "Not found."},
    ),
}  # fmt: skip
_ALL = tuple(document for documents in _DOCUMENTS.values() for document in documents)

_HEADERS: tuple[tuple[str, bytes], ...] = (
    *(("retry-after", value) for value in (b"1", b"-1", b"nan", b"1e400", b"Thu, 99 Foo 2026", b"\xff", b"")),
    *(("location", value) for value in (b"https://v3.fal.media/b.png", b"http://[", b"/b.png", b"\xff", b"")),
    *(("content-type", value) for value in (b"text/html; charset=x", b"text/event-stream", b"image/png")),
    *(("content-encoding", value) for value in (b"gzip", b"br", b"deflate", b"x")),
    *(("x-fal-error-type", value) for value in (b"client_cancelled", b"\x7f", b"x" * 500)),
    *(("x-litellm-response-cost", value) for value in (b"0.04", b"inf", b"-1", b"x")),
)
_STATUSES = (
    *(200,) * 40,
    201,
    202,
    204,
    301,
    302,
    400,
    401,
    402,
    403,
    404,
    409,
    410,
    422,
    429,
    499,
    500,
    502,
    503,
    529,
)
_FAILURES = (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ConnectError)


def _answer(rnd: random.Random, provider: str, request: httpx.Request) -> httpx.Response:
    """What a hostile server in a vendor's place answers to any request."""
    if rnd.random() < 0.03:
        raise rnd.choice(_FAILURES)("lost", request=request)
    headers = [rnd.choice(_HEADERS) for _ in range(rnd.choice((0, 0, 0, 1, 3)))]
    if rnd.random() < (0.8 if request.url.path.endswith(".png") else 0.05):
        content = spoilt_bytes(rnd, rnd.choice(_pictures()))
    else:
        link = _HOSTS[provider] if rnd.random() < 0.8 else rnd.choice(_LINKS)
        fitting = rnd.choice(_DOCUMENTS[provider] if rnd.random() < 0.9 else _ALL)
        content = spoilt_json(rnd, orjson.loads(orjson.dumps(fitting).replace(b'"L"', orjson.dumps(link))))
    if rnd.random() < 0.1:
        content = b"".join(b"data: " + content + b"\n\n" for _ in range(rnd.randrange(1, 4)))
    if ("content-encoding", b"gzip") in headers and rnd.random() < 0.8:
        content = gzip.compress(content)
    return httpx.Response(rnd.choice(_STATUSES), headers=headers, content=content)


def answers(name: str, rnd: random.Random) -> str:
    """All that an API's class asks for: an image, a lost request, the account, a cancellation."""
    return run(_asked, APIS[name](), rnd)


def _check(error: ApiError, usd: float) -> None:
    assert len(error.message) < 10_000
    assert error.message.isprintable()
    assert math.isfinite(usd)


async def _asked(api: ImageApi, rnd: random.Random) -> str:
    kept = rnd.choice(
        (None, None, None, "r", "paid:r", rnd.choice(_LINKS), "https://api.bfl.ai/v1/get_result?id=t")
    )
    begun = rnd.choice((0.0, time.time()))
    job = Job(
        0,
        "0",
        "k",
        "p",
        None,
        1024,
        1024,
        7,
        4,
        api.model,
        "png",
        request_id=kept,
        attempts=1,
        started_at=begun,
    )

    async def accepted(request_id: str, charged_usd: float | None = None) -> None:
        assert isinstance(request_id, str)
        assert len(request_id) <= MAX_LINK_LENGTH + 10
        assert charged_usd is None or (math.isfinite(charged_usd) and charged_usd >= 0)
        job.request_id = request_id

    async with httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: _answer(rnd, api.provider, request))
    ) as http:
        try:
            match rnd.randrange(10):
                case 0:
                    await api.look_up(http)
                case 1:
                    async for found, request_id in api.find_lost(http, [job], ["paid:x"]):
                        assert found is job
                        assert isinstance(request_id, str)
                case 2 if isinstance(api, QueuedApi):
                    assert await api.cancel(http, "r") in {True, False}
                    return "cancelled"
                case _:
                    image = await api.generate(http, job, accepted)
                    assert isinstance(image.content, bytes)
                    assert math.isfinite(image.cost_usd)
                    assert image.cost_usd >= 0
                    return "an image"
        except ApiError as error:
            _check(error, api.charge(job).usd)
            return error.code if error.code.isidentifier() else "another code"
        except httpx.HTTPError:
            return "no answer to a free question"  # which nobody waits for
    return "told"


_FIELD = {"type": "integer", "minimum": 1, "maximum": 50, "default": 4, "description": "multiple of 8"}
_INPUT = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "image_size": {"anyOf": [{"$ref": "#/components/schemas/Size"}, {"enum": ["square"]}]},
        "width": _FIELD, "height": _FIELD, "aspect_ratio": {"allOf": [{"$ref": "#/x/Ratio"}]},
        "num_inference_steps": _FIELD, "seed": {"type": "integer"}, "num_images": _FIELD,
        "loop": {"$ref": "#/x/Loop"},
        "output_format": {"enum": ["png", "jpeg"]}, "guidance_scale": {"type": "number", "maximum": 20},
    },
}  # fmt: skip
_OPENAPI = {
    "paths": {"/m/m": {"post": {"requestBody": {"content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/Input"}}}}}}},
    "components": {"schemas": {
        "Input": _INPUT, "Ratio": {"enum": ["1:1", "custom"]},
        "Size": {"properties": {"width": _FIELD, "height": _FIELD}},
        "Loop": {"allOf": [{"$ref": "#/components/schemas/Loop"}] * 9, "anyOf": [{"$ref": "#/x/Loop"}] * 9},
    }},
}  # fmt: skip
_SCHEMAS = {
    "fal": {"models": [{"endpoint_id": "m/m", "openapi": _OPENAPI}]},
    "replicate": {"latest_version": {"openapi_schema": _OPENAPI}},
}
_PRICES = {"prices": [{"endpoint_id": "m/m", "unit": "images", "unit_price": 0.003, "currency": "USD"}]}


def schema(rnd: random.Random) -> str:
    """The reader of the schemas and prices that vendors publish."""
    vendor = rnd.choice(("fal", "replicate"))
    try:
        document = orjson.loads(spoilt_json(rnd, _SCHEMAS[vendor]))
        prices = orjson.loads(spoilt_json(rnd, _PRICES))
    except orjson.JSONDecodeError:
        return "no JSON"
    published_price("m/m", prices, date(2026, 11, 26))
    try:
        profile = published_profile(vendor, "m/m", document, date(2026, 11, 26))
    except InputError:
        return "refused"
    profile.refusal(64, 64, 4)
    profile.fields(
        prompt="p", negative_prompt=None, width=64, height=64, steps=4, seed=7, image_format="png", params=""
    )
    return "read"


ANSWERS = {f"answers_{name}": functools.partial(answers, name) for name in APIS} | {"schema": schema}
