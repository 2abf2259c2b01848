"""Reads what vendors publish about a model: fal's and Replicate's schemas, and fal's prices.

A schema decides the fields, ranges and choices of a model that is not listed. It is read once, before a
run is planned, and kept in the run's folder, so that a resume on another day plans nothing anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Literal
from urllib.parse import quote, urlencode

from imagemill.errors import InputError, printable
from imagemill.models.parameter import Param
from imagemill.models.price_rules import Price
from imagemill.models.profile import OURS, Profile, SizeForm, Sizes, Steps
from imagemill.usd import exact

PUBLISHING: Mapping[str, str] = {"fal": "https://api.fal.ai", "replicate": "https://api.replicate.com"}
"""The vendors that publish a schema of each model, and where."""

_MOST_REFERENCES = 20_000
_STEPS = ("num_inference_steps", "steps")
_FORMATS = {"png": ("png",), "jpeg": ("jpeg", "jpg"), "webp": ("webp",)}
_ONE = {"num_images", "num_outputs", "n", "number_of_images"}
_IMAGE = re.compile(r"(^|_)(image|images|img|mask|video|audio)(s|_urls?|_input|_image)?$")
_UNITS: Mapping[str, Literal["image", "whole megapixel"]] = {
    "image": "image", "images": "image", "request": "image", "requests": "image",
    "megapixel": "whole megapixel", "megapixels": "whole megapixel",
}  # fmt: skip


def schema_url(vendor: str, model: str, base_url: str) -> str:
    """Where the schema of a model is published, below ``base_url``."""
    if vendor == "fal":
        query = urlencode({"endpoint_id": model, "expand": "openapi-3.0"})
        return f"{base_url}/v1/models?{query}"
    return f"{base_url}/v1/models/{quote(model)}"


def price_url(model: str, base_url: str) -> str:
    """Where fal publishes the price of a model, below ``base_url``."""
    return f"{base_url}/v1/models/pricing?{urlencode({'endpoint_id': model})}"


def published_profile(vendor: str, model: str, document: Any, noted: date) -> Profile:  # noqa: ANN401
    """The profile that a vendor's own document of a model gives.

    Raises:
        InputError: there is no such model, it makes no images from a prompt, or the document says nothing.
    """
    try:
        return _profile_in(vendor, model, document, noted)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"The schema that {vendor} publishes for {model!r} cannot be read ({type(error).__name__})."
            " Choose another model."
        ) from error


def _profile_in(vendor: str, model: str, document: Any, noted: date) -> Profile:  # noqa: ANN401
    openapi = _openapi_of(vendor, model, document)
    schema, components = _input_of(vendor, model, openapi)
    fields = {
        printable(str(name))[:100]: components.resolved(given)
        for name, given in (schema.get("properties") or {}).items()
    }
    if "prompt" not in fields:
        listed = ", ".join(list(fields)[:12]) or "none"
        raise InputError(
            f"The model {model} at {vendor} takes no prompt (its fields: {listed}). Choose a model that makes"
            " images from text."
        )
    required = [str(name) for name in schema.get("required") or ()]
    for name in required:
        if name != "prompt" and _IMAGE.search(name) and "default" not in fields.get(name, {}):
            raise InputError(
                f"The model {model} at {vendor} needs an image ({name}), which a catalog of prompts does not"
                " have. Choose a model that makes images from text."
            )
    size_form, sizes, taken = _sizes_of(fields, components)
    steps_name = next((name for name in _STEPS if name in fields), None)
    names = {"prompt": "prompt"}
    if steps_name:
        names["steps"] = steps_name
    names |= {name: name for name in ("seed", "negative_prompt") if name in fields}
    formats = {"png": "", "jpeg": "", "webp": ""}  # the model decides, and the bytes say what came
    if "output_format" in fields:
        names["format"] = "output_format"
        formats = _formats_of(fields["output_format"])
    decided = {*names.values(), *taken, *OURS}
    return Profile(
        vendor=vendor,
        name=model,
        title=model,
        sizes=sizes,
        size_form=size_form,
        steps=_steps_of(fields.get(steps_name or "", {}), sent=steps_name is not None),
        names=names,
        formats=formats,
        always={name: 1 for name in fields if name in _ONE},
        params={name: _param_of(given) for name, given in fields.items() if name not in decided},
        required=tuple(
            name
            for name in required
            if name in fields and name not in decided and "default" not in fields[name]
        ),
        noted=noted,
        source=f"the model's schema, published by {vendor}",
        confirmed=True,
        origin="published",
    )


def published_price(model: str, document: Any, noted: date) -> Price | None:  # noqa: ANN401
    """The price in fal's answer; None where it has none that a request decides beforehand."""
    for each in _list_at(document, "prices"):
        if each.get("endpoint_id") != model or str(each.get("currency", "USD")).upper() != "USD":
            continue
        unit = _UNITS.get(str(each.get("unit", "")).strip().lower())
        try:
            usd = exact(str(each.get("unit_price")))
        except ArithmeticError:
            return None
        if unit is None or not usd.is_finite() or usd < 0:
            return None
        return Price(usd=usd, unit=unit, noted=noted, source="fal's pricing API", confirmed=True)
    return None


def _openapi_of(vendor: str, model: str, document: Any) -> Mapping[str, Any]:  # noqa: ANN401
    if vendor == "fal":
        found = [each for each in _list_at(document, "models") if each.get("endpoint_id") == model]
        if not found:
            raise InputError(f"There is no model {model!r} at fal. See https://fal.ai/models.")
        openapi = found[0].get("openapi")
    else:
        version = document.get("latest_version") if isinstance(document, dict) else None
        openapi = version.get("openapi_schema") if isinstance(version, dict) else None
    if not isinstance(openapi, dict):
        raise InputError(
            f"{vendor.capitalize()} does not publish a schema for the model {model!r}. Choose another."
        )
    return openapi


def _input_of(vendor: str, model: str, openapi: Mapping[str, Any]) -> tuple[Mapping[str, Any], _Schemas]:
    """The schema of a model's input, and the schemas that it may refer to."""
    named_schemas = _dict_at(openapi, "components", "schemas")
    components = _Schemas(named_schemas)
    if vendor == "replicate":
        schema = _dict_at(named_schemas, "Input")
    else:
        schema = {}
        for path, methods in _dict_at(openapi, "paths").items():
            body = _dict_at(methods, "post", "requestBody", "content", "application/json", "schema")
            if body and str(path).strip("/") == model:
                schema = components.resolved(body)
        if not schema:
            named = [s for name, s in named_schemas.items() if str(name).endswith("Input")]
            schema = named[0] if len(named) == 1 and isinstance(named[0], dict) else {}
    if not isinstance(schema.get("properties"), dict):
        raise InputError(
            f"The schema that {vendor} publishes for {model!r} has no fields. Choose another model."
        )
    return schema, components


class _Schemas:
    """The schemas of a document that others refer to. References may be circular, so few are followed."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found
        self._left = _MOST_REFERENCES

    def resolved(self, given: Any, depth: int = 5) -> dict[str, Any]:  # noqa: ANN401
        """A schema with its references followed; keys beside a reference override it."""
        if not isinstance(given, dict):
            return {}
        found = dict(given)
        self._left -= 1
        if not depth or self._left < 0:
            return found
        pointed = [given.get("$ref")] + [each.get("$ref") for each in _list_at(given, "allOf")]
        for reference in pointed:
            if isinstance(reference, str):
                found = {**self.resolved(self._found.get(reference.rpartition("/")[2]), depth - 1), **found}
        options = [self.resolved(each, depth - 1) for each in _list_at(given, "anyOf")]
        options = [each for each in options if each.get("type") != "null"]
        if len(options) == 1:
            found = {**options[0], **found}
        elif options:
            found["options"] = options
        return found


def _sizes_of(
    fields: Mapping[str, Mapping[str, Any]], components: _Schemas
) -> tuple[SizeForm, Sizes, set[str]]:
    """How a size is asked for, which there are, and the fields that this takes."""
    ratio = fields.get("aspect_ratio", {})
    sides = {"width", "height"} <= set(fields)
    if "image_size" in fields:
        options = [fields["image_size"], *fields["image_size"].get("options", ())]
        for option in options:
            inner = option.get("properties")
            if isinstance(inner, dict) and {"width", "height"} <= set(inner):
                width = components.resolved(inner["width"])
                return "image_size", _range_of(width, most=2048), {"image_size"}
        return "none", Sizes(exact=False), set()
    if sides and (not ratio or "custom" in ratio.get("enum", ())):
        form: SizeForm = "custom ratio" if ratio else "width and height"
        return form, _range_of(fields["width"], most=4096), {"width", "height", "aspect_ratio"}
    return "none", Sizes(exact=False), set()


def _range_of(side: Mapping[str, Any], most: int) -> Sizes:
    smallest = _number(side.get("minimum"), 64)
    largest = _number(side.get("maximum"), most)
    words = str(side.get("description", "")).lower()
    named = re.search(r"multiple of (\d{1,3})", words)
    multiple = _number(side.get("multipleOf"), int(named[1]) if named else 1)
    return Sizes(smallest=max(1, smallest), largest=min(max(largest, 1), 4096), multiple=max(1, multiple))


def _steps_of(field: Mapping[str, Any], *, sent: bool) -> Steps:
    if not sent:
        return Steps(1, 50, 4, sent=False)
    lowest, highest = _number(field.get("minimum"), 1), _number(field.get("maximum"), 50)
    default = _number(field.get("default"), min(max(4, lowest), highest))
    return Steps(lowest, highest, min(max(default, lowest), highest))


def _formats_of(field: Mapping[str, Any]) -> dict[str, str]:
    choices = [str(choice) for choice in field.get("enum", ())]
    found = {
        ours: word for ours, words in _FORMATS.items() for word in words if word in choices or not choices
    }
    return found or {"png": "", "jpeg": "", "webp": ""}


def _param_of(field: Mapping[str, Any]) -> Param:
    kind = field.get("type")
    choices = field.get("enum")
    return Param(
        kind=kind if kind in {"integer", "number", "boolean", "string", "array", "object"} else "any",
        lowest=_float(field.get("minimum")),
        highest=_float(field.get("maximum")),
        choices=tuple(choices[:500]) if isinstance(choices, list) else (),
        default=field.get("default"),
        about=printable(str(field.get("description", "")))[:300],
    )


def _number(value: Any, default: int) -> int:  # noqa: ANN401
    number = _float(value)
    return default if number is None or abs(number) > 1e9 else int(number)


def _float(value: Any) -> float | None:  # noqa: ANN401
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _list_at(value: Any, name: str) -> list[dict[str, Any]]:  # noqa: ANN401
    found = value.get(name) if isinstance(value, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _dict_at(value: Any, *path: str) -> dict[str, Any]:  # noqa: ANN401
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}
