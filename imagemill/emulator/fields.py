"""Fields of a request body, checked in the same way for every vendor; each words the errors its own way."""

from __future__ import annotations

from typing import Any

from imagemill.emulator.faults import FaultPlan, UnknownFaultError
from imagemill.emulator.order import Format

__all__ = ["SEEDS", "FieldError", "choice", "picture_format", "prompt_of", "whole"]

SEEDS = range(-(2**63), 2**64)


class FieldError(Exception):
    """A field cannot be used.

    `name` is its name, `code` the vendor's word for the error where it has one, `kind` what is wrong with the
    value, as Pydantic names it: int_type, less_than_equal.
    """

    def __init__(
        self, name: str, message: str, code: str | None = None, *, kind: str = "value_error"
    ) -> None:
        """Say what is wrong with the field."""
        super().__init__(message)
        self.name = name
        self.code = code
        self.kind = kind


def prompt_of(fields: dict[str, Any], name: str = "prompt") -> str:
    """Return the prompt.

    Raises:
        FieldError: There is none, it is blank, or it names an unknown fault.
    """
    prompt = fields.get(name)
    if not isinstance(prompt, str) or not prompt.strip():
        message = "A prompt that is not blank is required."
        raise FieldError(name, message)
    try:
        FaultPlan.check(prompt)
    except UnknownFaultError as unknown:
        message = f"The emulator has no fault {unknown}."
        raise FieldError(name, message) from unknown
    return prompt


def whole(fields: dict[str, Any], name: str, default: int, allowed: range) -> int:
    """Return a whole number within a range.

    Raises:
        FieldError: It is none, or outside.
    """
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value not in allowed:
        step = f" and a multiple of {allowed.step}" if allowed.step > 1 else ""
        message = f"{name} must be a whole number from {allowed[0]} to {allowed[-1]}{step}."
        raise FieldError(name, message)
    return value


def choice(fields: dict[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return one of some words.

    Raises:
        FieldError: It is another.
    """
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or value not in allowed:
        message = f"{name} must be one of {', '.join(allowed)}."
        raise FieldError(name, message)
    return value


def picture_format(fields: dict[str, Any], default: str, allowed: tuple[str, ...]) -> Format:
    """Return the format that `output_format` asks for, in the emulator's own word.

    Raises:
        FieldError: The vendor does not make it.
    """
    formats: dict[str, Format] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
    return formats[choice(fields, "output_format", default, allowed)]
