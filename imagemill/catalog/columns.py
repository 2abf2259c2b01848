"""The columns of a catalog: what each is used for, which are carried, and with which common type."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from imagemill.errors import InputError
from imagemill.settings import CATALOG_COLUMNS, PARAM_PREFIX, CatalogSettings

TEXTS = ("prompt", "negative_prompt")
"""The columns that hold text."""

_MANIFEST = frozenset({"key", "status", "uri", "copy_uri", "error_code"})
"""Columns of imagemill's own manifest: a catalog that has all of them is a manifest."""
_REJECTED = frozenset({"row", "reason"})
_VARIED = frozenset({"variant", "varied"})
_MOST_NOTES = 20
_DECIMAL_DIGITS = 38


@dataclass(frozen=True, slots=True)
class Columns:
    """What each column of a catalog is used for.

    ``used`` maps imagemill's names to the catalog's; ``carried`` are those that the manifest keeps, under
    their common types; ``left_out`` are the others; ``notes`` are sentences about what was not plain.
    ``partial`` is that of a rejected.parquet: rows of a catalog that is itself elsewhere. ``drifting`` are
    those whose type is not the same in all files.
    """

    used: dict[str, str]
    carried: pa.Schema
    left_out: list[str]
    notes: list[str] = field(default_factory=list)
    partial: bool = False
    drifting: frozenset[str] = frozenset()


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """Whether a type holds bytes of any length."""
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds bytes, also nested ones: usually pictures."""
    if is_binary(kind):
        return True
    return any(holds_bytes(kind.field(place).type) for place in range(kind.num_fields))


def holds_text(kind: pa.DataType) -> bool:
    """Whether a type holds text, also nested."""
    return is_text(kind) or any(holds_text(kind.field(place).type) for place in range(kind.num_fields))


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, however they are encoded."""
    if pt.is_dictionary(kind):
        return plain(kind.value_type)
    if pt.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if kind.extension_name == "arrow.uuid" else plain(kind.storage_type)
    return pa.string() if is_text(kind) else kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A type that holds the values of both; text if there is no other."""
    if one == other or pt.is_null(other) or pt.is_null(one):
        return one if pt.is_null(other) else other
    if _is_list(one) and _is_list(other):
        return pa.list_(common_type(one.value_type, other.value_type))
    if pt.is_struct(one) and pt.is_struct(other):
        fields = {f.name: f.type for f in one}
        for each in other:
            fields[each.name] = common_type(fields.get(each.name, pa.null()), each.type)
        return pa.struct(list(fields.items()))
    return _common_number(one, other)


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """A common type of two numbers or two timestamps; text for all others."""
    decimals = [kind for kind in (one, other) if pt.is_decimal(kind)]
    if decimals:
        exact = all(pt.is_integer(kind) or pt.is_decimal(kind) for kind in (one, other))
        # A float has digits that a decimal lacks.
        return pa.decimal128(_DECIMAL_DIGITS, max(kind.scale for kind in decimals)) if exact else pa.string()
    alike = (pt.is_primitive(one) and pt.is_primitive(other)) and not (
        pt.is_timestamp(one) ^ pt.is_timestamp(other)
    )
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type if alike else pa.string()
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.string()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def columns_of(settings: CatalogSettings, files: Mapping[str, pa.Schema]) -> Columns:
    """Decide what the columns of a catalog's files are used for.

    Args:
        settings: which the catalog's names are, and which columns to carry.
        files: the schema of each file, with the columns of its folders; files without rows may be left out.

    Raises:
        InputError: a column is missing, ambiguous or of a type that cannot be used.
    """
    notes: list[str] = []
    merged: dict[str, pa.DataType] = {}
    drifting: dict[str, list[pa.DataType]] = {}
    for file, schema in files.items():
        _refuse_repeated(file, schema)
        for each in schema:
            kind = plain(each.type)
            known = merged.setdefault(each.name, kind)
            if kind != known:
                merged[each.name] = common_type(known, kind)
                drifting.setdefault(each.name, [known]).append(kind)
    used = _used(settings, list(merged))
    notes += _matched(settings, used)
    _refuse_types(used, files)
    for own, name in used.items():
        lacking = [file for file, schema in files.items() if name not in schema.names]
        if lacking and own == "prompt":
            raise InputError(
                f"The catalog file {lacking[0]!r} has no column {name!r}, which other files of the catalog"
                " have: add the prompts, or leave the file out."
            )
        if lacking:
            notes.append(f"{len(lacking):,} files lack the column {name!r}, the first is {lacking[0]!r}.")
    left_out = _left_out(settings, merged, set(used.values()), notes)
    carried = [
        (name, kind) for name, kind in merged.items() if name not in left_out and name not in used.values()
    ]
    for name, kind in carried:
        kinds = list(dict.fromkeys(str(each) for each in drifting.get(name, ()) if not pt.is_null(each)))
        if len(kinds) > 1:
            notes.append(
                f"The column {name!r} is {' and '.join(kinds)} in different files; it is carried as {kind}."
            )
    return Columns(
        used, pa.schema(carried), left_out, notes[:_MOST_NOTES], _is_rejected(merged), frozenset(drifting)
    )


def _refuse_repeated(file: str, schema: pa.Schema) -> None:
    name, count = Counter(schema.names).most_common(1)[0] if len(schema) else ("", 1)
    if count > 1:
        raise InputError(
            f"The catalog file {file!r} has {count} columns of the name {name!r}: rename all but one."
        )


def _used(settings: CatalogSettings, names: list[str]) -> dict[str, str]:
    used: dict[str, str] = {}
    rejected = _is_rejected(names)
    for own, wanted in settings.columns.items():
        if rejected and wanted not in names and own in names:
            used[own] = own  # there, imagemill's columns have its own names
        elif wanted:
            used[own] = _named(wanted, names, own)
    renamed = set(used.values())
    for own in CATALOG_COLUMNS:
        if own not in settings.columns and own not in renamed and (found := _matching(own, names, renamed)):
            used[own] = found
    for made in settings.templates:  # what a template makes is carried, where the catalog has it too
        used.pop(made, None)
    if "prompt" not in used and "prompt" not in settings.templates:
        raise InputError(
            f"The catalog has no column 'prompt'{nearest('prompt', names)}. Name the column that holds"
            " the prompts, as in --column prompt=NAME, or make them from columns with --prompt-template. Its"
            f" columns: {listed(names)}."
        )
    order = (*CATALOG_COLUMNS, *[own for own in settings.columns if own.startswith(PARAM_PREFIX)])
    return {own: used[own] for own in order if own in used}


def _matched(settings: CatalogSettings, used: Mapping[str, str]) -> list[str]:
    """A sentence for each column that is used under a name in other capitals."""
    return [
        f"The column {name!r} is used as {own}"
        + ("." if own in settings.columns or own == "prompt" else f"; --column {own}= leaves it alone.")
        for own, name in used.items()
        if name not in {own, settings.columns.get(own)}
    ]


def _is_rejected(names: Collection[str]) -> bool:
    """Whether a catalog with these columns is a rejected.parquet."""
    return {*_REJECTED, *CATALOG_COLUMNS}.issubset(names)


def _matching(own: str, names: Sequence[str], renamed: Collection[str]) -> str | None:
    """The column with a name, ignoring case if none has it exactly.

    Raises:
        InputError: several columns have it.
    """
    if own in names:
        return own
    found = [name for name in names if name.lower() == own and name not in renamed]
    if len(found) > 1:
        raise InputError(
            f"The columns {' and '.join(map(repr, found))} could both be {own!r}: say which one is,"
            f" as in --column {own}={found[0]}."
        )
    return found[0] if found else None


def _named(wanted: str, names: Sequence[str], own: str) -> str:
    if wanted in names:
        return wanted
    close = [name for name in names if name.lower() == wanted.lower()]
    if len(close) == 1:
        return close[0]
    raise InputError(
        f"The catalog has no column {wanted!r} to use as {own!r}"
        f"{nearest(wanted, names)}. Its columns: {listed(names)}."
    )


def _refuse_types(used: Mapping[str, str], files: Mapping[str, pa.Schema]) -> None:
    for own in TEXTS:
        name = used.get(own)
        for file, schema in files.items():
            if name is None or name not in schema.names:
                continue
            kind = plain(schema.field(name).type)
            if not (is_text(kind) or is_binary(kind) or pt.is_null(kind)):
                raise InputError(
                    f"The catalog file {file!r} holds {kind}, not text, in the column {name!r}, which is the"
                    f" {own.replace('_', ' ')}. Write it as text, or name another column, as in"
                    f" --column {own}=NAME."
                )


def _left_out(
    settings: CatalogSettings, merged: Mapping[str, pa.DataType], used: set[str], notes: list[str]
) -> list[str]:
    """The columns that are not carried: imagemill's own, and bytes without ``--carry``."""
    others = merged.keys() - used
    left_out: list[str] = []
    if merged.keys() >= _MANIFEST:
        left_out += [name for name in merged if name in others and name in {*_MANIFEST, *_VARIED}]
        notes.append("The catalog is a manifest of imagemill: its keys and outcomes are not carried.")
    elif _is_rejected(merged):
        left_out += [name for name in merged if name in others and name in {*_REJECTED, *_VARIED}]
        notes.append(
            "The catalog is a rejected.parquet: its rows are merged into the manifest, without their row"
            " numbers and reasons."
        )
    unknown = [name for name in settings.carry if name not in merged]
    if unknown:
        raise InputError(
            f"The catalog has no column {unknown[0]!r} to carry{nearest(unknown[0], list(merged))}."
            f" Its columns: {listed(list(merged))}."
        )
    for name, kind in merged.items():
        if name in others and holds_bytes(kind) and name not in settings.carry:
            left_out.append(name)
            notes.append(f"The column {name!r} holds bytes and is not carried; --carry {name} would.")
    return left_out


def nearest(name: str, names: Sequence[str]) -> str:
    """Words that name the column closest to ``name``; "" if none is close."""
    lowered = {known.lower(): known for known in reversed(names)}
    usual = ["text", "caption", "description", "prompts", "title"] if name == "prompt" else []
    for wanted in [name, *usual]:
        if close := difflib.get_close_matches(wanted.lower(), lowered, 1, 0.6):
            return f"; the closest is {lowered[close[0]]!r}"
    return ""


def listed(names: Sequence[str]) -> str:
    """The columns in a sentence, the first twenty of them."""
    shown = ", ".join(names[:20])
    return f"{shown}, …" if len(names) > 20 else shown or "none"


def described(columns: Columns) -> dict[str, Any]:
    """What a run's record and summary keep of it."""
    return {
        "used": columns.used,
        "carried": columns.carried.names,
        "left_out": columns.left_out,
        "notes": columns.notes,
        "partial": columns.partial,
    }
