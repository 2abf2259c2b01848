"""The models that imagemill knows, from the files in ``data``: one per vendor, dated and sourced."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Any

from imagemill.models.parameter import Param
from imagemill.models.price_rules import Price
from imagemill.models.profile import Profile, Sizes, Steps

VENDORS = ("together", "fal", "replicate", "bfl", "openai", "runware", "cloudflare")
"""The vendors whose models are listed."""


@cache
def listed_models(vendor: str) -> Mapping[str, Profile]:
    """The listed models of a vendor by name, the vendor's default first; none for another vendor."""
    if vendor not in VENDORS:
        return {}
    text = files("imagemill.models").joinpath("data", f"{vendor}.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text, parse_float=Decimal)
    shared = document.get("all", {})
    profiles = [_profile(vendor, _merged(shared, entry), document) for entry in document["model"]]
    return {name: replace(profile, name=name) for profile, names in profiles for name in names}


def find_profile(vendor: str, model: str) -> Profile | None:
    """The listed profile of a model; None where it is not listed."""
    return listed_models(vendor).get(model)


def _merged(shared: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry over what all entries of its file share; their ``params`` add to each other."""
    params = {**shared.get("params", {}), **entry.get("params", {})}
    return {"always": {}, **shared, **entry, "params": params}


def _profile(
    vendor: str, entry: dict[str, Any], document: Mapping[str, Any]
) -> tuple[Profile, tuple[str, ...]]:
    noted: date = entry.pop("noted")
    price = entry.pop("price", None)
    sizes = dict(entry.pop("sizes", {}))
    ratios = document.get("ratios", {}).get(sizes.pop("ratios", ""))
    if ratios:
        sizes["listed"] = {
            (width // part, height // part): {"aspect_ratio": ratio, "megapixels": megapixels}
            for megapixels, part in ratios["megapixels"].items()
            for ratio, (width, height) in ratios["sizes"].items()
        }
    elif "listed" in sizes:
        sizes["listed"] = {(width, height): {} for width, height in sizes["listed"]}
    profile = Profile(
        vendor=vendor,
        name=entry.pop("name"),
        title=entry.pop("title"),
        sizes=Sizes(**sizes),
        steps=Steps(**entry.pop("steps", {})),
        params={name: _param(given) for name, given in entry.pop("params").items()},
        always=_plain(entry.pop("always")),
        required=tuple(entry.pop("required", ())),
        price=_price(price, noted, entry["source"]) if price else None,
        noted=noted,
        **{key: value for key, value in entry.items() if key != "aliases"},
    )
    return profile, (profile.name, *entry.get("aliases", ()))


def _param(given: Mapping[str, Any]) -> Param:
    plain = _plain(given)
    return Param(**{**plain, "choices": tuple(plain.get("choices", ()))})


def _price(given: Mapping[str, Any], noted: date, source: str) -> Price:
    fields = {"source": source, **given}
    tokens = {
        (quality, *(int(side) for side in size.split("x"))): count
        for quality, sizes in fields.pop("tokens", {}).items()
        for size, count in sizes.items()
    }
    for name in ("usd", "further_usd", "step_usd", "text_usd", "image_usd"):
        if name in fields:
            fields[name] = Decimal(fields[name])
    return Price(noted=noted, tokens=tokens, **fields)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever TOML holds
    """Floats for decimals: these are sent as JSON, and are no money."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value
