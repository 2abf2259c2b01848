"""The input of fal's FLUX.1 [schnell] application, and its validation errors."""

from __future__ import annotations

from typing import Any

from imagemill.emulator.faults import FaultPlan, UnknownFaultError
from imagemill.emulator.fields import FieldError
from imagemill.emulator.order import Format, Order

__all__ = ["MODEL", "PRESETS", "SCHEMA", "InvalidInputError", "read_input"]

MODEL = "fal-ai/flux/schnell"
PRESETS = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""The preset sizes by name: width and height in pixels."""

_SIDES = range(64, 2049)
_STEPS = range(1, 13)
_COUNTS = range(1, 5)
_SEEDS = range(-(2**63), 2**64)


SCHEMA: dict[str, Any] = {
    "openapi": "3.0.4",
    "info": {"title": "Queue OpenAPI for fal-ai/flux/schnell", "version": "1.0.0"},
    "components": {
        "schemas": {
            "FluxSchnellInput": {
                "type": "object",
                "required": ["prompt"],
                "x-fal-order-properties": ["prompt", "num_inference_steps", "image_size", "seed"],
                "properties": {
                    "prompt": {"type": "string"},
                    "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": 12, "default": 4},
                    "image_size": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ImageSize"},
                            {"type": "string", "enum": list(PRESETS)},
                        ],
                        "default": "landscape_4_3",
                    },
                    "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                    "guidance_scale": {"type": "number", "minimum": 1, "maximum": 20, "default": 3.5},
                    "sync_mode": {"type": "boolean", "default": False},
                    "num_images": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
                    "enable_safety_checker": {"type": "boolean", "default": True},
                    "output_format": {"type": "string", "enum": ["jpeg", "png"], "default": "jpeg"},
                    "acceleration": {
                        "type": "string",
                        "enum": ["none", "regular", "high"],
                        "default": "none",
                    },
                },
            },
            "ImageSize": {
                "type": "object",
                "properties": {
                    side: {"type": "integer", "exclusiveMinimum": 0, "maximum": 14142, "default": 512}
                    for side in ("width", "height")
                },
            },
        }
    },
    "paths": {
        f"/{MODEL}": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/FluxSchnellInput"}}
                    },
                }
            }
        }
    },
    "servers": [{"url": "https://queue.fal.run"}],
}
"""The model's own schema in the shape in which fal publishes it; facts read 2026-11-25."""


class InvalidInputError(FieldError):
    """A field of the input cannot be used."""

    def __init__(self, loc: tuple[str, ...], message: str, kind: str) -> None:
        """Name the place of the field, what is wrong, and the type of the error."""
        super().__init__(loc[-1] if loc else "", message, kind)
        self.loc = loc


def read_input(fields: dict[str, Any], drawn_seed: int) -> Order:
    """Check the body of a request; `drawn_seed` is the seed when it names none.

    Raises:
        InvalidInputError: A field cannot be used.
    """
    prompt = fields.get("prompt")
    if "prompt" not in fields:
        raise InvalidInputError(("prompt",), "Field required", "missing")
    if not isinstance(prompt, str):
        raise InvalidInputError(("prompt",), "Input should be a valid string", "string_type")
    if not prompt.strip():
        raise InvalidInputError(("prompt",), "The prompt must not be blank.", "string_too_short")
    try:
        FaultPlan.check(prompt)
    except UnknownFaultError as unknown:
        message = f"The emulator has no fault {unknown}."
        raise InvalidInputError(("prompt",), message, "value_error") from unknown
    width, height = _size(fields.get("image_size"))
    seed = None if fields.get("seed") is None else _whole(fields, ("seed",), 0, _SEEDS)
    for name in ("sync_mode", "enable_safety_checker"):
        if not isinstance(fields.get(name, True), bool):
            raise InvalidInputError((name,), "Input should be a valid boolean", "bool_type")
    return Order(
        provider="fal",
        model=MODEL,
        prompt=prompt,
        width=width,
        height=height,
        steps=_whole(fields, ("num_inference_steps",), 4, _STEPS),
        seed=seed,
        drawn_seed=drawn_seed if seed is None else seed,
        format=_format(fields),
        count=_whole(fields, ("num_images",), 1, _COUNTS),
    )


def _size(value: object) -> tuple[int, int]:
    if value is None:
        return PRESETS["landscape_4_3"]
    if isinstance(value, dict):
        place = "image_size"
        return (
            _whole(value, (place, "width"), 512, _SIDES),
            _whole(value, (place, "height"), 512, _SIDES),
        )
    if not isinstance(value, str) or value not in PRESETS:
        names = ", ".join(PRESETS)
        message = f"Input should be one of {names}, or an object of width and height"
        raise InvalidInputError(("image_size",), message, "enum")
    return PRESETS[value]


def _whole(fields: dict[str, Any], loc: tuple[str, ...], default: int, allowed: range) -> int:
    value = fields.get(loc[-1])
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(loc, "Input should be a valid integer", "int_type")
    if value < allowed[0]:
        message = f"Input should be greater than or equal to {allowed[0]}"
        raise InvalidInputError(loc, message, "greater_than_equal")
    if value > allowed[-1]:
        message = f"Input should be less than or equal to {allowed[-1]}"
        raise InvalidInputError(loc, message, "less_than_equal")
    return value


def _format(fields: dict[str, Any]) -> Format:
    value = fields.get("output_format")
    if value is None or value == "jpeg":
        return "jpeg"
    if value == "png":
        return "png"
    raise InvalidInputError(("output_format",), "Input should be 'jpeg' or 'png'", "enum")
