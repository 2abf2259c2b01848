"""What is listed and what the emulated vendors publish of the same models say the same."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal

import httpx
import pytest

from imagemill.blocks.apis import Fal, ImageApi, Replicate
from imagemill.blocks.apis.learning import learn
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.models.published import published_profile, schema_url


@pytest.fixture
def address(emulator: Callable[..., Emulator]) -> str:
    return emulator().base_url


@pytest.mark.parametrize("kind", [Fal, Replicate])
def test_a_published_schema_agrees_with_what_is_listed(kind: type[ImageApi], address: str) -> None:
    api = kind(api_key="k", base_url=address)
    listed = api.profile
    url = schema_url(api.provider, api.model, address)
    document = httpx.get(url, headers=api.headers).raise_for_status().json()
    published = published_profile(api.provider, api.model, document, date(2026, 11, 25))
    assert dict(published.names).items() >= dict(listed.names).items()
    assert (published.steps.lowest, published.steps.highest) == (listed.steps.lowest, listed.steps.highest)
    assert published.formats == listed.formats
    for name, param in listed.params.items():
        assert (published.params[name].lowest, published.params[name].highest) == (
            param.lowest,
            param.highest,
        )
        assert published.params[name].choices == param.choices


def test_fals_price_is_read_and_an_unknown_model_refused(address: str) -> None:
    api = Fal(api_key="k", base_url=address)
    with httpx.Client() as http:
        learn(api, http)
        assert api.published_price is not None
        assert api.published_price.source == "fal's pricing API"
        assert api.price(1024, 1024) == Decimal("0.003")
        with pytest.raises(InputError, match=r"^There is no model 'fal-ai/nonsense' at fal"):
            learn(Fal(api_key="k", base_url=address, model="fal-ai/nonsense"), http)
