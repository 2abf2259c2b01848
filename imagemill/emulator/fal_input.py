"""The input of fal's applications: its sizes, and the schema in the shape in which fal publishes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagemill.emulator.fields import FieldError
from imagemill.emulator.models import Model, check_value

if TYPE_CHECKING:
    from imagemill.emulator.order import Order

__all__ = ["PRESETS", "application_of", "published", "read_input"]

PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""The preset sizes by name: width and height in pixels."""

_USUAL_SIDE = 512
_IMAGE_SIZE: dict[str, Any] = {
    "type": "object",
    "properties": {
        side: {"type": "integer", "exclusiveMinimum": 0, "maximum": 14142, "default": _USUAL_SIDE}
        for side in ("width", "height")
    },
}


def application_of(model: str) -> str:
    """Return the application that a model is part of: its first two parts name the queue's paths."""
    return "/".join(model.split("/")[:2])


def published(model: Model) -> dict[str, Any]:
    """Return the model's schema as fal publishes it."""
    size = {
        "anyOf": [{"$ref": "#/components/schemas/ImageSize"}, {"type": "string", "enum": list(PRESETS)}],
        "default": "landscape_4_3",
    }
    properties = {**model.schema["properties"], "image_size": size}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Input"}}}
    return {
        "openapi": "3.0.4",
        "info": {"title": f"Queue OpenAPI for {model.name}", "version": "1.0.0"},
        "components": {
            "schemas": {
                "Input": {
                    **model.schema,
                    "x-fal-order-properties": list(properties),
                    "properties": properties,
                },
                "ImageSize": _IMAGE_SIZE,
            }
        },
        "paths": {f"/{model.name}": {"post": {"requestBody": {"required": True, "content": content}}}},
        "servers": [{"url": "https://queue.fal.run"}],
    }


def read_input(model: Model, fields: dict[str, Any], drawn_seed: int) -> Order:
    """Check the body of a request; `drawn_seed` is the seed when it names none.

    Raises:
        FieldError: A field cannot be used.
    """
    model.checked(fields)
    return model.order(fields, drawn_seed, _size(model, fields.get("image_size")))


def _size(model: Model, value: object) -> tuple[int, int]:
    if value is None:
        return PRESETS["landscape_4_3"]
    if isinstance(value, dict):
        smallest, largest, _ = model.facts["sides"]
        sides = []
        for name in ("width", "height"):
            side = _USUAL_SIDE if value.get(name) is None else value[name]
            check_value(
                f"image_size.{name}", side, {"type": "integer", "minimum": smallest, "maximum": largest}
            )
            sides.append(side)
        return sides[0], sides[1]
    if not isinstance(value, str) or value not in PRESETS:
        names = ", ".join(PRESETS)
        message = f"Input should be one of {names}, or an object of width and height"
        raise FieldError("image_size", message, kind="enum")
    return PRESETS[value]
