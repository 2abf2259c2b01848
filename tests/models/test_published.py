"""Models that are not listed: their vendor's own schema is read once, and decides."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from imagemill.blocks.apis import Fal, ImageApi, Replicate, Together
from imagemill.blocks.apis.learning import learn
from imagemill.errors import InputError
from tests.blocks.apis.variants import make_job

NEW_FAL = "fal-ai/new-model"
NEW_REPLICATE = "somebody/new-model"


def fal_document(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """A model as fal's platform gives it: an OpenAPI document in the model's entry."""
    return {
        "models": [
            {
                "endpoint_id": NEW_FAL,
                "metadata": {"display_name": "New", "category": "text-to-image", "status": "active"},
                "openapi": {
                    "openapi": "3.0.4",
                    "components": {
                        "schemas": {
                            "NewModelInput": {
                                "type": "object",
                                "properties": properties,
                                "required": required or ["prompt"],
                            },
                            "ImageSize": {
                                "type": "object",
                                "properties": {
                                    "width": {"type": "integer", "maximum": 14142, "exclusiveMinimum": 0},
                                    "height": {"type": "integer", "maximum": 14142, "exclusiveMinimum": 0},
                                },
                            },
                            "QueueStatus": {"type": "object", "properties": {"status": {"type": "string"}}},
                        }
                    },
                    "paths": {
                        f"/{NEW_FAL}/requests/{{request_id}}/status": {"get": {}},
                        f"/{NEW_FAL}": {
                            "post": {
                                "requestBody": {
                                    "required": True,
                                    "content": {
                                        "application/json": {
                                            "schema": {"$ref": "#/components/schemas/NewModelInput"}
                                        }
                                    },
                                }
                            }
                        },
                    },
                },
            }
        ]
    }


FAL_FIELDS: dict[str, Any] = {
    "prompt": {"type": "string", "description": "What to draw"},
    "negative_prompt": {"type": "string", "default": ""},
    "image_size": {
        "anyOf": [
            {"$ref": "#/components/schemas/ImageSize"},
            {"type": "string", "enum": ["square_hd", "square"]},
        ],
        "default": "square_hd",
    },
    "num_inference_steps": {"type": "integer", "minimum": 10, "maximum": 40, "default": 30},
    "guidance_scale": {"type": "number", "minimum": 0, "maximum": 20, "default": 5},
    "style": {"type": "string", "enum": ["photo", "drawing"]},
    "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "num_images": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
    "output_format": {"type": "string", "enum": ["jpeg", "png"], "default": "jpeg"},
    "sync_mode": {"type": "boolean", "default": False},
}


def replicate_document(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """A model as Replicate gives it: the schema of its newest version."""
    schemas = {
        "Input": {"type": "object", "properties": properties, "required": required or ["prompt"]},
        "aspect_ratio": {"type": "string", "enum": ["1:1", "16:9", "custom"]},
        "output_format": {"type": "string", "enum": ["webp", "jpg", "png"]},
    }
    openapi = {"openapi": "3.0.2", "components": {"schemas": schemas}}
    return {
        "owner": "somebody",
        "name": "new-model",
        "latest_version": {"id": "1", "openapi_schema": openapi},
    }


REPLICATE_FIELDS: dict[str, Any] = {
    "prompt": {"type": "string"},
    "aspect_ratio": {"allOf": [{"$ref": "#/components/schemas/aspect_ratio"}], "default": "1:1"},
    "width": {"type": "integer", "minimum": 256, "maximum": 1440, "description": "A multiple of 32"},
    "height": {"type": "integer", "minimum": 256, "maximum": 1440, "description": "A multiple of 32"},
    "seed": {"type": "integer"},
    "output_format": {"allOf": [{"$ref": "#/components/schemas/output_format"}], "default": "webp"},
    "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
    "guidance": {"type": "number", "minimum": 0, "maximum": 10},
}

Answer = Callable[[httpx.Request], httpx.Response]


def ask(
    api: ImageApi, answer: Answer, cache: Path | None = None, *, keyed: bool = True
) -> list[httpx.Request]:
    """Let an API learn from a vendor that answers so; what the vendor was asked."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    with httpx.Client(transport=httpx.MockTransport(handle)) as http:
        learn(api, http, cache, keyed=keyed)
    return asked


def documents(model: dict[str, Any], price: dict[str, Any] | None = None) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/pricing"):
            return httpx.Response(200, json=price) if price else httpx.Response(403)
        return httpx.Response(200, json=model)

    return answer


def test_fals_schema_decides_fields_ranges_and_choices() -> None:
    api = Fal(api_key="k", model=NEW_FAL)
    asked = ask(api, documents(fal_document(FAL_FIELDS)))
    assert str(asked[0].url) == (
        "https://api.fal.ai/v1/models?endpoint_id=fal-ai%2Fnew-model&expand=openapi-3.0"
    )
    assert asked[0].headers["authorization"] == "Key k"
    profile = api.profile
    assert (profile.origin, profile.uses_negative_prompt) == ("published", True)
    assert api.refusal(1024, 768, 30) is None
    assert api.refusal(1024, 768, 4) == "steps 4 is not between 10 and 40"
    assert api.image_formats == {"png", "jpeg"}
    params = profile.checked({"style": "photo", "guidance_scale": "7.5"})
    job = make_job(api, "A fox", steps=30, params=params)
    job.negative_prompt = "blur"
    assert api.body(job) == {
        "prompt": "A fox", "negative_prompt": "blur", "image_size": {"width": 512, "height": 512},
        "num_inference_steps": 30, "seed": 7, "output_format": "png", "num_images": 1,
        "style": "photo", "guidance_scale": 7.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="not one of photo, drawing"):
        profile.checked({"style": "oil"})
    assert api.price(1024, 1024) is None


def test_replicates_schema_decides_too() -> None:
    api = Replicate(api_key="k", model=NEW_REPLICATE)
    asked = ask(api, documents(replicate_document(REPLICATE_FIELDS)))
    assert [str(request.url) for request in asked] == [
        "https://api.replicate.com/v1/models/somebody/new-model"
    ]
    assert api.refusal(1000, 1024, 4) == "width 1000 is not a multiple of 32"
    assert api.body(make_job(api, "A fox"))["input"] == {
        "prompt": "A fox", "aspect_ratio": "custom", "width": 512, "height": 512, "seed": 7,
        "output_format": "png", "num_outputs": 1,
    }  # fmt: skip
    assert api.profile.checked({"guidance": 3}) == '{"guidance":3}'


@pytest.mark.parametrize(
    ("fields", "required", "sentence"),
    [
        (
            {"image_url": {"type": "string"}, "scale": {"type": "number"}},
            ["image_url"],
            r"takes no prompt \(its fields: image_url, scale\). Choose a model that makes images from text",
        ),
        (
            {**FAL_FIELDS, "image_url": {"type": "string"}},
            ["prompt", "image_url"],
            r"needs an image \(image_url\), which a catalog of prompts does not have",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    fields: dict[str, Any], required: list[str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        ask(Fal(api_key="k", model=NEW_FAL), documents(fal_document(fields, required)))


def test_a_field_that_the_model_needs_must_be_given() -> None:
    api = Fal(api_key="k", model=NEW_FAL)
    ask(api, documents(fal_document(FAL_FIELDS, ["prompt", "style"])))
    with pytest.raises(ValueError, match="needs the field style: set it with --param style=VALUE"):
        api.profile.checked({})
    assert api.profile.checked({"style": "photo"})


def test_it_is_read_once_and_then_from_the_runs_folder(tmp_path: Path) -> None:
    cache = tmp_path / "model.json"
    price = {"prices": [{"endpoint_id": NEW_FAL, "unit_price": 0.04, "unit": "images", "currency": "USD"}]}
    assert len(ask(Fal(api_key="k", model=NEW_FAL), documents(fal_document(FAL_FIELDS), price), cache)) == 2
    later = Fal(api_key="k", model=NEW_FAL)
    assert ask(later, lambda _: pytest.fail("asked again"), cache) == []
    assert later.refusal(1024, 768, 4) == "steps 4 is not between 10 and 40"
    assert later.price(512, 512) == Decimal("0.04")
    assert b"Key" not in cache.read_bytes()


@pytest.mark.parametrize(
    ("entry", "usd"),
    [
        ({"unit_price": 0.0031, "unit": "megapixels", "currency": "USD"}, "0.0062"),
        ({"unit_price": 0.05, "unit": "image", "currency": "USD"}, "0.05"),
        ({"unit_price": 0.0008, "unit": "compute seconds", "currency": "USD"}, "0.006"),
        ({"unit_price": "free", "unit": "image"}, "0.006"),
        ({"unit_price": -1, "unit": "image"}, "0.006"),
    ],
)
def test_fals_own_price_wins_over_the_listed_one(entry: dict[str, Any], usd: str) -> None:
    api = Fal(api_key="k")
    asked = ask(api, documents({}, {"prices": [{"endpoint_id": api.model, **entry}]}))
    assert [request.url.path for request in asked] == ["/v1/models/pricing"]
    assert api.price(1440, 1024) == Decimal(usd)


def test_without_a_key_no_price_is_asked_for_and_a_listed_model_needs_nothing() -> None:
    assert ask(Fal(api_key="none"), documents({}), keyed=False) == []
    assert ask(Replicate(api_key="k"), documents({})) == []
    assert ask(Together(api_key="k", model="somebody/new"), documents({})) == []


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "There is no model 'somebody/new-model' at replicate"),
        (401, "refused the key .* Check REPLICATE_API_TOKEN"),
        (503, r"did not describe it \(HTTP 503\)"),
    ],
)
def test_a_vendor_that_does_not_answer(status: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ask(Replicate(api_key="k", model=NEW_REPLICATE), lambda _: httpx.Response(status, text="<html>"))


def test_a_server_in_the_vendors_place_without_schemas_is_taken_as_it_is() -> None:
    api = Fal(api_key="k", model=NEW_FAL, base_url="http://127.0.0.1:1")
    ask(api, lambda _: httpx.Response(404))
    assert api.profile.origin == "assumed"
    assert api.price(1024, 1024) is None
    assert api.refusal(1024, 1024, 4) is None


@pytest.mark.parametrize(
    "document",
    [
        {"models": [{"endpoint_id": NEW_FAL, "openapi": {"components": {"schemas": {"Input": 5}}}}]},
        {"models": [{"endpoint_id": NEW_FAL}]},
        {"models": "none"},
        fal_document({"prompt": {"$ref": "#/components/schemas/Loop"}, "seed": 3, "style": {"enum": 7}}),
        fal_document(
            {"prompt": {"type": "string"}, "num_inference_steps": {"minimum": 1e300, "default": "x"}}
        ),
    ],
)
def test_hostile_documents_end_in_a_sentence_or_a_profile(document: dict[str, Any]) -> None:
    api = Fal(api_key="k", model=NEW_FAL)
    try:
        ask(api, documents(document))
    except InputError as error:
        assert "fal" in str(error).lower()  # noqa: PT017
    else:
        api.body(make_job(api, "A fox"))
