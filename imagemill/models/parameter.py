"""A further field of a model: its type, its range, and how a value given as text becomes what is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["integer", "number", "boolean", "string", "array", "object", "any"]
"""The types of JSON; any where the model's documents do not say."""

PLACEHOLDERS: Mapping[str, str] = {"{seed}": "seed", "{steps}": "steps"}
"""Values that stand for a job's own: some servers take its seed under a name of their own."""

_MAX_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Param:
    """A further field of a model: its type and what it may hold."""

    kind: Kind = "any"
    lowest: float | None = None
    highest: float | None = None
    choices: tuple[Any, ...] = ()
    default: Any = None
    about: str = ""

    def value(self, given: object) -> Any:  # noqa: ANN401 - whatever JSON holds
        """What is sent for ``given``, which may be text from a command line or a catalog.

        Raises:
            ValueError: it is not of this type, or out of range; says what is.
        """
        found = _of_kind(self.kind, given)
        if self.choices and found not in self.choices:
            text = [choice for choice in self.choices if str(choice) == str(found)]
            if not text:
                raise ValueError(f"is not one of {', '.join(str(choice) for choice in self.choices[:20])}")
            return text[0]
        if isinstance(found, (int, float)) and not isinstance(found, bool):
            if self.lowest is not None and found < self.lowest:
                raise ValueError(f"is below {self.lowest:g}")
            if self.highest is not None and found > self.highest:
                raise ValueError(f"is above {self.highest:g}")
        return found

    def __str__(self) -> str:
        if self.choices:
            return " | ".join(str(choice) for choice in self.choices)
        if self.lowest is not None and self.highest is not None:
            return f"{self.kind}, {self.lowest:g} to {self.highest:g}"
        return self.kind


def _of_kind(kind: Kind, given: object) -> Any:  # noqa: ANN401
    if isinstance(given, str) and len(given) > _MAX_TEXT:
        raise ValueError(f"has more than {_MAX_TEXT:,} characters")
    if isinstance(given, str) and given in PLACEHOLDERS and kind != "string":
        return given
    return _READERS[kind](given)


def _boolean(given: object) -> bool:
    found = {"true": True, "false": False, "1": True, "0": False}.get(str(given).strip().lower())
    if found is None:
        raise ValueError("is neither true nor false")
    return found


def _string(given: object) -> str:
    if isinstance(given, (bool, dict, list)):
        raise ValueError("is not text")  # noqa: TRY004 - a user's value, not a programming error
    return str(given)


def _number(given: object) -> int | float:
    try:
        number = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is not a number")
    if isinstance(given, int) or (isinstance(given, str) and given.strip().lstrip("+-").isdecimal()):
        return int(given)
    return _plain(number)


def _integer(given: object) -> int:
    found = _number(given)
    if not isinstance(found, int):
        raise ValueError("is not a whole number")  # noqa: TRY004
    return found


def _array(given: object) -> Any:  # noqa: ANN401
    found = _json(given)
    if not isinstance(found, list):
        raise ValueError("is not a JSON array")  # noqa: TRY004
    return found


def _object(given: object) -> Any:  # noqa: ANN401
    found = _json(given)
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004
    return found


def _any(given: object) -> Any:  # noqa: ANN401
    """Text as the JSON that it spells, or else as text."""
    try:
        found = _json(given)
    except ValueError:
        return str(given)
    return _plain(found) if isinstance(found, float) else found


_READERS: Mapping[Kind, Callable[[object], Any]] = {
    "boolean": _boolean,
    "string": _string,
    "number": _number,
    "integer": _integer,
    "array": _array,
    "object": _object,
    "any": _any,
}


def _plain(number: float) -> int | float:
    """3.0 and 3 are one value, and one key."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _json(given: object) -> Any:  # noqa: ANN401
    try:
        text = given if isinstance(given, str) else json.dumps(given, allow_nan=False)
        return json.loads(text, parse_constant=_no_constant)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("is not JSON") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)
