"""The listed models: each dated and sourced, each price as its vendor's page works it out."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from imagemill.blocks.apis import PROVIDERS
from imagemill.models.listing import VENDORS, find_profile, listed_models

ALL = [profile for vendor in VENDORS for profile in listed_models(vendor).values()]


@pytest.mark.parametrize("profile", ALL, ids=lambda profile: f"{profile.vendor} {profile.name}")
def test_each_model_says_where_it_is_from_and_takes_its_own_defaults(profile: object) -> None:
    from imagemill.models.profile import Profile  # noqa: PLC0415 - only its type

    assert isinstance(profile, Profile)
    assert profile.source
    assert profile.noted is not None
    assert profile.noted > date(2026, 1, 1)
    assert profile.steps.lowest <= profile.steps.default <= profile.steps.highest
    sizes = list(profile.sizes.listed) or [(1024, 1024)]
    for width, height in sizes:
        assert profile.refusal(width, height, profile.steps.default) is None
    assert profile.names["prompt"]
    assert profile.formats
    for name, param in profile.params.items():
        if param.default is not None:
            assert param.value(param.default) == param.default, name


@pytest.mark.parametrize("provider", PROVIDERS)
def test_each_providers_usual_model_is_listed(provider: str) -> None:
    assert find_profile(provider, PROVIDERS[provider].default_model)


@pytest.mark.parametrize(
    ("vendor", "model", "width", "height", "steps", "usd"),
    [
        ("together", "black-forest-labs/FLUX.1-schnell", 1024, 1024, 4, "0.0028311552"),
        ("together", "black-forest-labs/FLUX.1-schnell", 1024, 1024, 8, "0.0056623104"),
        ("together", "black-forest-labs/FLUX.1-schnell", 1024, 1024, 1, "0.0028311552"),
        ("fal", "fal-ai/flux-2-flex", 1024, 1024, 28, "0.05"),
        ("fal", "fal-ai/flux-2-flex", 1920, 1080, 28, "0.10"),
        ("fal", "fal-ai/flux-2-flex", 512, 512, 28, "0.05"),
        ("fal", "fal-ai/flux-2-pro", 1920, 1080, 4, "0.045"),
        ("bfl", "flux-2-klein-4b", 1024, 1024, 4, "0.014"),
        ("bfl", "flux-2-klein-4b", 2048, 2048, 4, "0.017"),
        ("bfl", "flux-2-klein-9b", 2048, 1024, 4, "0.017"),
        ("bfl", "flux-2-pro", 2048, 2048, 4, "0.075"),
        ("replicate", "black-forest-labs/flux-schnell", 320, 768, 4, "0.003"),
        ("cloudflare", "@cf/black-forest-labs/flux-1-schnell", 1024, 1024, 4, "0.0006336"),
    ],
)
def test_the_price_rule_of_each_vendor(
    vendor: str, model: str, width: int, height: int, steps: int, usd: str
) -> None:
    profile = find_profile(vendor, model)
    assert profile is not None
    assert profile.price_of(width, height, steps) == Decimal(usd)


def test_a_price_by_tokens_is_known_only_where_quality_and_size_decide_it() -> None:
    profile = find_profile("openai", "gpt-image-2")
    assert profile is not None
    assert profile.price_of(1024, 1024, 4, '{"quality":"low"}') == Decimal("0.00588")
    assert profile.price_of(1024, 1024, 4, "") is None
    assert profile.price_of(2048, 2048, 4, '{"quality":"low"}') is None


@pytest.mark.parametrize(
    ("model", "width", "height", "refused"),
    [
        ("gpt-image-2", 2048, 2048, None),
        ("gpt-image-2", 512, 512, "512 x 512 has fewer than 655,360 pixels"),
        ("gpt-image-2", 3840, 2176, "3840 x 2176 has more than 8,294,400 pixels"),
        ("gpt-image-2", 3840, 1024, "3840 x 1024 is longer than 3:1"),
        ("gpt-image-1.5", 512, 512, "OpenAI has no size 512 x 512; the nearest is 1024 x 1024"),
    ],
)
def test_openais_sizes(model: str, width: int, height: int, refused: str | None) -> None:
    profile = find_profile("openai", model)
    assert profile is not None
    assert profile.refusal(width, height, 4) == refused


def test_bfl_takes_four_megapixels_in_all() -> None:
    profile = find_profile("bfl", "flux-2-pro")
    assert profile is not None
    assert profile.refusal(2048, 2048, 4) is None
    assert profile.refusal(2064, 2048, 4) == "2064 x 2048 has more than 4,194,304 pixels"
    assert profile.refusal(1000, 1000, 4) == "width 1000 is not a multiple of 16"
