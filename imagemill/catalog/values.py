"""Values of a catalog's columns, as rows are checked and carried: valid text, plain ids, common types."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.types as pt

from imagemill.catalog.columns import is_binary, is_text

_UUID_BYTES = 16

Reasons = dict[int, str]


def decoded(column: pa.Array, name: str, reasons: Reasons) -> pa.Array:
    """A column decoded, with valid values only; ``reasons`` gets the rows with others."""
    if isinstance(column.type, pa.BaseExtensionType):
        if column.type.extension_name == "arrow.uuid":
            return pa.array(
                [None if value is None else str(UUID(bytes=value)) for value in column.storage.to_pylist()],
                pa.string(),
            )
        column = column.storage
    column = _valid(column, name, reasons)
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif pt.is_run_end_encoded(column.type):
        column = pa.compute.run_end_decode(column)
    return column.cast(pa.string()) if is_text(column.type) and column.type != pa.string() else column


def _valid(column: pa.Array, name: str, reasons: Reasons) -> pa.Array:
    """The column with nulls in place of broken values, such as text that is not UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        broken = []
        for place in range(len(column)):
            try:
                # An array of its own: a slice is validated with all that it was cut from.
                column.take(pa.array([place])).validate(full=True)
            except pa.ArrowInvalid:
                broken.append(place)
                reasons.setdefault(place, f"the column {name!r} holds text that is not valid UTF-8")
        places = [None if place in broken else place for place in range(len(column))]
        return column.take(pa.array(places, pa.int64()))
    return column


def texts(column: pa.Array, name: str, reasons: Reasons) -> pa.Array:
    """A column of prompts: text, or bytes that are UTF-8."""
    if is_text(column.type):
        return column
    if pt.is_null(column.type):
        return column.cast(pa.string())
    found: list[str | None] = []
    for place, value in enumerate(column.to_pylist()):
        try:
            found.append(None if value is None else bytes(value).decode())
        except UnicodeDecodeError:
            found.append(None)
            reasons.setdefault(place, f"the column {name!r} holds bytes that are not valid UTF-8")
    return pa.array(found, pa.string())


def ids(column: pa.Array) -> pa.Array:
    """A column of ids: numbers stay numbers, everything else becomes text."""
    kind = column.type
    if is_text(kind) or pt.is_integer(kind) or pt.is_floating(kind) or pt.is_null(kind):
        return column
    if (pt.is_timestamp(kind) or pt.is_duration(kind) or pt.is_time64(kind)) and kind.unit == "ns":
        coarse = {"timestamp": pa.timestamp("us", getattr(kind, "tz", None)), "duration": pa.duration("us")}
        try:
            column = column.cast(coarse.get(str(kind).partition("[")[0], pa.time64("us")))
        except pa.ArrowInvalid:  # nanoseconds that count
            return column.cast(pa.int64() if pt.is_duration(kind) else pa.string())
    return pa.array([None if value is None else _id(value) for value in column.to_pylist()], pa.string())


def _id(value: Any) -> str:  # noqa: ANN401 - whatever a column holds
    if isinstance(value, Decimal):
        return format(value.quantize(1) if value == value.to_integral_value() else value, "f")
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = ""
        if text and text.isprintable():
            return text
        return str(UUID(bytes=value)) if len(value) == _UUID_BYTES else value.hex()
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def params(column: pa.Array, name: str, reasons: Reasons) -> pa.Array:
    """A column of a parameter's values: decimals as numbers, bytes as text, lists and structs as JSON."""
    values: list[Any] = column.to_pylist()
    if pt.is_decimal(column.type):
        whole = all(value is None or value == value.to_integral_value() for value in values)
        kind = int if whole else float
        return pa.array([None if value is None else kind(value) for value in values])
    if not (pt.is_nested(column.type) or is_binary(column.type) or pt.is_fixed_size_binary(column.type)):
        return column
    found: list[str | None] = []
    for place, value in enumerate(values):
        try:
            text = value if value is None or isinstance(value, bytes) else _json(value)
            found.append(text.decode() if isinstance(text, bytes) else text)
        except ValueError:
            found.append(None)
            reasons.setdefault(place, f"the column {name!r} holds a value that JSON has no form for")
    return pa.array(found, pa.string())


def _json(value: Any) -> str:  # noqa: ANN401
    """A list or a struct as JSON.

    Raises:
        ValueError: it holds NaN, infinity or bytes that are not UTF-8.
    """

    def form_of(part: object) -> object:
        if isinstance(part, Decimal):
            return int(part) if part == part.to_integral_value() else float(part)
        return part.decode() if isinstance(part, bytes) else str(part)

    return json.dumps(value, default=form_of, allow_nan=False)


def carried(column: pa.Array, kind: pa.DataType, name: str, reasons: Reasons) -> pa.Array:
    """A column under the type that all files of its catalog have in common."""
    if column.type == kind:
        return column
    if not (is_text(kind) and (pt.is_nested(column.type) or is_binary(column.type))):
        try:
            return column.cast(kind, safe=not pt.is_floating(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            pass
    values: list[Any] = []
    for place, given in enumerate(column.to_pylist()):
        try:
            value = _text(given) if is_text(kind) else given
            pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeDecodeError, OverflowError, ValueError):
            reasons.setdefault(place, f"the column {name!r} holds a value that is no {kind}")
            values.append(None)
        else:
            values.append(value)
    return pa.array(values, kind)


def _text(value: Any) -> str | None:  # noqa: ANN401
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)
