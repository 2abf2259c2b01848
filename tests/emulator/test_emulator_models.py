"""The emulator serves every model that is listed: what a profile allows, the vendor's excerpt allows too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from imagemill.blocks.apis import PROVIDERS, Fal, ImageApi
from imagemill.emulator import Emulator, Settings
from imagemill.emulator.models import models_of
from imagemill.models.listing import VENDORS, listed_models
from imagemill.models.parameter import Param
from imagemill.models.profile import Profile, Sizes
from tests.blocks.apis.variants import make_job

LISTED = [
    pytest.param(vendor, name, id=f"{vendor} {name}")
    for vendor in VENDORS
    for name in {profile.title: name for name, profile in listed_models(vendor).items()}.values()
    if not (vendor == "openai" and "FLUX" in name)  # a server of one's own takes whatever it likes
]
"""One name of each model."""


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with Emulator(Settings(latency_s=0, pictures="fast")) as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator) -> Emulator:
    running.reset()
    return running


def api_of(vendor: str, model: str, emulator: Emulator) -> ImageApi:
    """An API of the emulator; fal's synchronous form, since its queue takes any input at first."""
    if vendor == "fal":
        return Fal(api_key="k", base_url=f"{emulator.base_url}/sync", model=model, queued=False)
    more = {"account": "abc"} if vendor == "cloudflare" else {}
    return PROVIDERS[vendor](api_key="k", base_url=emulator.base_url, model=model, **more)


def smallest_and_largest(sizes: Sizes) -> list[tuple[int, int]]:
    """The two sizes, in pixels, at the ends of what a model takes."""
    if sizes.listed:
        by_area = sorted(sizes.listed, key=lambda size: size[0] * size[1])
        return [by_area[0], by_area[-1]]
    step = sizes.multiple
    sides = range(-(-sizes.smallest // step) * step, sizes.largest + 1, step)
    fitting = [(side, side) for side in sides if sizes.refusal(side, side, "") is None]
    largest = fitting[-1]
    beside = [(sides[-1], side) for side in sides if sizes.refusal(sides[-1], side, "") is None]
    return [fitting[0], max([largest, *beside], key=lambda size: size[0] * size[1])]


def values_of(param: Param) -> list[Any]:
    """Values at the ends of what a field takes."""
    if param.choices:
        return list(param.choices)
    if param.kind == "boolean":
        return [True, False]
    if param.kind in {"integer", "number"}:
        return [value for value in (param.lowest, param.highest) if value is not None] or [1]
    return {"array": [[]], "object": [{}]}.get(param.kind, ["words"])


def steps_of(profile: Profile) -> list[int]:
    return sorted({profile.steps.lowest, profile.steps.default, profile.steps.highest})


def jobs_of(api: ImageApi) -> Iterator[Any]:
    """Jobs at either end of each thing that a model takes."""
    profile = api.profile
    usual = {"steps": profile.steps.default, "format": "jpeg"}
    ends = smallest_and_largest(profile.sizes)
    fields: list[dict[str, Any]] = [{"width": width, "height": height} for width, height in ends]
    width, height = ends[0]
    small: list[dict[str, Any]] = [{"steps": steps} for steps in steps_of(profile)]
    small += [{"format": image_format} for image_format in profile.formats]
    small += [
        {"params": profile.checked({name: value}), "format": "png" if value == "transparent" else "jpeg"}
        for name, param in profile.params.items()
        for value in values_of(param)
    ]
    small = [{"width": width, "height": height} | one for one in small]
    for number, given in enumerate([*fields, *small]):
        yield make_job(api, f"A fox {number}", number=number, **(usual | given))


def input_of(api: ImageApi, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["input"] if api.provider == "replicate" else body
    return found


def excerpt_of(api: ImageApi) -> dict[str, Any]:
    """The stored excerpt of the model's schema, closed to fields that it does not have."""
    schema = models_of(api.provider)[api.model].schema
    size = {"image_size": {"type": "object"}} if api.provider == "fal" else {}
    return {**schema, "properties": {**schema["properties"], **size}, "additionalProperties": False}


@pytest.mark.parametrize(("vendor", "name"), LISTED)
def test_what_a_profile_allows_is_accepted_and_charged_at_its_price(
    vendor: str, name: str, emulator: Emulator
) -> None:
    api = api_of(vendor, name, emulator)
    jobs = list(jobs_of(api))
    with httpx.Client(headers=api.headers, trust_env=False, timeout=60) as http:
        for job in jobs:
            jsonschema.validate(input_of(api, api.body(job)), excerpt_of(api))
            answer = http.post(api.endpoint(job), json=api.payload(job))
            assert answer.status_code in api.success, (api.payload(job), answer.text[:300])
    while (stats := emulator.stats())["in_flight"] or stats["queued"]:
        time.sleep(0.01)
    bill = emulator.bill()
    assert bill["images"] == len(jobs)
    made = {(line["width"], line["height"]) for line in bill["by_key"].values()}
    assert made == {(job.width, job.height) for job in jobs}
    price = api.profile.price
    if price is not None and price.unit != "token":
        assert bill["usd"] == pytest.approx(
            float(sum(price.of(job.width, job.height, job.steps, job.params) or 0 for job in jobs))
        )


@pytest.mark.parametrize(("vendor", "name"), LISTED)
def test_what_a_profile_refuses_the_vendor_refuses(vendor: str, name: str, emulator: Emulator) -> None:
    api = api_of(vendor, name, emulator)
    profile = api.profile
    job = next(jobs_of(api))
    body = api.body(job)
    fields = input_of(api, body)
    wrong: dict[str, Any] = {}
    if profile.steps.sent and "steps" in profile.names:
        wrong[profile.names["steps"]] = profile.steps.highest + 1
    wrong |= {
        param: "nonsense" if known.choices else known.highest + 1
        for param, known in profile.params.items()
        if known.choices or known.highest is not None
    }
    wrong |= dict.fromkeys({"width", "height"} & set(fields), profile.sizes.largest + profile.sizes.multiple)
    with httpx.Client(headers=api.headers, trust_env=False, timeout=60) as http:
        for field, value in wrong.items():
            asked = {**fields, field: value}
            payload = {"input": asked} if vendor == "replicate" else [asked] if vendor == "runware" else asked
            answer = http.post(api.endpoint(job), json=payload)
            assert answer.status_code in {400, 422}, (field, value, answer.text[:300])
    assert emulator.bill()["images"] == 0
