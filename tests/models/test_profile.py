"""What is sent for a job follows from the model, and further fields are checked before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.models.listing import find_profile
from imagemill.models.parameter import Param
from imagemill.models.profile import Profile
from tests.blocks.apis.variants import make_job


def body_of(provider: str, model: str = "", *, params: str = "", **job: Any) -> dict[str, Any]:
    api: ImageApi = PROVIDERS[provider](api_key="k", model=model, base_url="http://gpu.internal")
    found = api.body(make_job(api, "A fox", params=params, **job))
    return found["input"] if provider == "replicate" else found


def test_the_usual_models_are_asked_as_before() -> None:
    """What a resumed run of an earlier version looks for in a vendor's list of requests."""
    assert body_of("fal") == {
        "prompt": "A fox", "image_size": {"width": 512, "height": 512}, "num_inference_steps": 4, "seed": 7,
        "num_images": 1, "enable_safety_checker": True, "output_format": "png",
    }  # fmt: skip
    assert body_of("replicate", format="webp") == {
        "prompt": "A fox", "aspect_ratio": "1:1", "megapixels": "0.25", "num_outputs": 1,
        "num_inference_steps": 4, "seed": 7, "output_format": "webp", "go_fast": False, "output_quality": 90,
    }  # fmt: skip
    assert body_of("together") == {
        "model": "black-forest-labs/FLUX.1-schnell", "prompt": "A fox", "width": 512, "height": 512,
        "steps": 4, "seed": 7, "n": 1, "response_format": "base64", "output_format": "png",
    }  # fmt: skip
    assert body_of("bfl") == {
        "prompt": "A fox", "width": 512, "height": 512, "seed": 7, "prompt_upsampling": False,
        "output_format": "png",
    }  # fmt: skip


def test_a_model_is_asked_for_what_it_takes() -> None:
    pro = body_of("fal", "fal-ai/flux-2-pro")
    assert "num_inference_steps" not in pro
    assert "num_images" not in pro
    assert body_of("replicate", "black-forest-labs/flux-2-pro") == {
        "prompt": "A fox", "aspect_ratio": "custom", "width": 512, "height": 512, "seed": 7,
        "output_format": "png",
    }  # fmt: skip
    flex = body_of("bfl", "flux-2-flex", params='{"guidance":3.5}')
    assert (flex["steps"], flex["guidance"]) == (4, 3.5)
    image = body_of("openai", "gpt-image-2", params='{"quality":"low"}')
    assert (image["size"], image["quality"]) == ("512x512", "low")
    assert "seed" not in image
    assert "output_format" not in image


def test_what_is_given_wins_and_placeholders_stand_for_the_jobs_own() -> None:
    assert body_of("replicate", params='{"go_fast":true}')["go_fast"] is True
    api = PROVIDERS["openai"](api_key="k", base_url="http://gpu.internal")
    params = api.profile.checked({"seed": "{seed}", "num_inference_steps": "{steps}", "cfg": "2.0"})
    body = body_of("openai", params=params)
    assert (body["seed"], body["num_inference_steps"], body["cfg"]) == (7, 4, 2)


@pytest.fixture
def flex() -> Profile:
    found = find_profile("fal", "fal-ai/flux-2-flex")
    assert found is not None
    return found


def test_params_are_typed_sorted_and_one_value_is_one_text(flex: Profile) -> None:
    wanted = '{"enable_prompt_expansion":false,"guidance_scale":3}'
    for given in ("3", "3.0", 3, 3.0):
        assert flex.checked({"guidance_scale": given, "enable_prompt_expansion": "false"}) == wanted
    assert flex.checked({"safety_tolerance": 5}) == '{"safety_tolerance":"5"}'
    assert flex.checked({}) == flex.checked({"guidance_scale": None}) == ""


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("guidance_scale", 99, "param guidance_scale '99' is above 10"),
        ("guidance_scale", "high", "param guidance_scale 'high' is not a number"),
        ("guidance_scale", "nan", "param guidance_scale 'nan' is not a number"),
        ("safety_tolerance", "9", "param safety_tolerance '9' is not one of 1, 2, 3, 4, 5"),
        ("enable_prompt_expansion", "maybe", "'maybe' is neither true nor false"),
        (
            "loras",
            "[]",
            "param loras is not a field of fal-ai/flux-2-flex; its further fields: enable_prompt",
        ),
        ("seed", 1, "param seed is set by imagemill itself"),
        ("num_images", 4, "param num_images is set by imagemill itself"),
        ("image_size", "square", "use width and height"),
    ],
)
def test_params_that_the_model_does_not_take(flex: Profile, name: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        flex.checked({name: value})


@pytest.mark.parametrize(
    ("kind", "given", "found"),
    [
        ("integer", "7", 7), ("integer", 7.0, 7), ("number", "1e-3", 0.001), ("boolean", "True", True),
        ("string", 5, "5"), ("array", '["a"]', ["a"]), ("object", '{"a": 1}', {"a": 1}),
        ("any", "true", True), ("any", "plain words", "plain words"), ("any", [1, {"a": 2}], [1, {"a": 2}]),
    ],
)  # fmt: skip
def test_text_becomes_what_json_sends(kind: Any, given: Any, found: Any) -> None:
    value = Param(kind).value(given)
    assert value == found
    assert type(value) is type(found)
    json.dumps(value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("integer", "7.5"), ("integer", True), ("number", "inf"), ("number", "1e999"), ("array", "{}"),
        ("object", "[" * 50_000), ("any", "x" * 20_001), ("string", ["a"]), ("boolean", 2),
    ],
)  # fmt: skip
def test_hostile_and_wrong_values_are_refused(kind: Any, given: Any) -> None:
    with pytest.raises(ValueError, match=r"is |has "):
        Param(kind).value(given)
