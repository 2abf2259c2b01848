"""The input of fal's FLUX.1 [schnell] application, and its validation errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagemill.emulator.faults import FaultPlan, UnknownFaultError
from imagemill.emulator.order import Format, Order

__all__ = ["MODEL", "PRESETS", "FalInput", "InvalidInputError", "read_input"]

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


@dataclass(frozen=True, slots=True)
class FalInput:
    """A checked input; `inline` asks for data URIs instead of links, `fields` are as they came."""

    order: Order
    inline: bool
    fields: dict[str, Any]


class InvalidInputError(Exception):
    """A field of the input cannot be used."""

    def __init__(self, loc: tuple[str, ...], message: str, kind: str) -> None:
        """Name the place of the field, what is wrong, and the type of the error."""
        super().__init__(message)
        self.loc = ("body", *loc)
        self.kind = kind

    def as_dict(self) -> dict[str, Any]:
        """Return the error as fal writes it: loc, msg and type."""
        return {"loc": list(self.loc), "msg": str(self), "type": self.kind}


def read_input(fields: dict[str, Any] | None, drawn_seed: int) -> FalInput:
    """Check the body of a request; `drawn_seed` is the seed when it names none.

    Raises:
        InvalidInputError: A field cannot be used.
    """
    if fields is None:
        raise InvalidInputError((), "The body must be a JSON object.", "dict_type")
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
    inline = _flag(fields, "sync_mode", default=False)
    _flag(fields, "enable_safety_checker", default=True)
    order = Order(
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
    return FalInput(order, inline, fields)


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


def _flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidInputError((name,), "Input should be a valid boolean", "bool_type")
    return value


def _format(fields: dict[str, Any]) -> Format:
    value = fields.get("output_format")
    if value is None or value == "jpeg":
        return "jpeg"
    if value == "png":
        return "png"
    raise InvalidInputError(("output_format",), "Input should be 'jpeg' or 'png'", "enum")
