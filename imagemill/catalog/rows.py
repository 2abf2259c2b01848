"""Checks a catalog's rows, a column at a time: what each asks for, or why it never becomes a job."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from imagemill.blocks.apis import ImageApi
from imagemill.catalog.keys import normalized, prompt_seeds
from imagemill.errors import InputError
from imagemill.parquet import is_constant
from imagemill.settings import PARAM_PREFIX, PictureSettings

MAX_PROMPT_LENGTH = 20_000
MAX_ID_LENGTH = 2_000

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?", re.ASCII)
_LONGEST_NUMBER = 40
_EXACT = 2.0**53
"""Below this a float that is whole is the number that was meant."""


class CatalogRows(NamedTuple):
    """Rows that can become jobs, by column; ``places`` are theirs in the batch that was read."""

    places: Sequence[int]
    ids: Sequence[str]
    prompts: Sequence[str]
    negative_prompts: Sequence[str | None]
    widths: Sequence[int]
    heights: Sequence[int]
    seeds: Sequence[int]
    steps: Sequence[int]
    params: Sequence[str]
    variants: Sequence[int]

    def only(self, kept: Sequence[int]) -> CatalogRows:
        """Some of the rows, by their index here."""
        if len(kept) == len(self.places):
            return self
        if len(kept) < 2:
            return CatalogRows._make([column[index] for index in kept] for column in self)
        return CatalogRows._make(list(column) for column in map(itemgetter(*kept), self))


class Judged(NamedTuple):
    """A batch of rows: the names of all, those that can become jobs, and by place why others cannot.

    The name of a row that was rejected because of its id is "".
    """

    names: list[str]
    rows: CatalogRows
    reasons: dict[int, str]


class Judge:
    """Says of each row what it asks for; ``picture`` has the defaults of rows that don't set their own.

    Raises:
        InputError: the settings' own params are not ones that the model takes.
    """

    def __init__(self, api: ImageApi, picture: PictureSettings) -> None:
        self._api = api
        self._picture = picture
        policy = picture.seed_policy
        self._fixed_seed = int(policy.partition(":")[2]) if policy.startswith("fixed:") else None
        self._random = random.SystemRandom() if policy == "random" else None
        self._profile = api.profile
        self._required = bool(api.profile.required)
        try:
            # A required field may come from the catalog: only what is given is checked here.
            self._params = replace(api.profile, required=()).checked(picture.params)
        except ValueError as error:
            raise InputError(f"{str(error)[0].upper()}{str(error)[1:]}.") from None

    def judge(self, batch: pa.Table, numbers: Sequence[int], reasons: dict[int, str]) -> Judged:
        """Judge rows that have imagemill's own names of columns; without ids, their numbers name them.

        ``numbers`` are the rows', ``reasons`` has those that were rejected before, by place.
        """
        count = batch.num_rows
        given = set(batch.column_names)
        # By columns in this order: a row's first fault counts.
        names = _names(batch["id"].to_pylist(), reasons) if "id" in given else [str(row) for row in numbers]
        prompts = _prompts(batch["prompt"].to_pylist(), reasons)
        negatives: list[str | None] = [None] * count
        if "negative_prompt" in given:
            texts = batch["negative_prompt"].to_pylist()
            negatives = [(normalized(text) or None) if isinstance(text, str) else None for text in texts]
        widths, heights, steps = (
            _wholes(name, batch[name], default, reasons) if name in given else [default] * count
            for name, default in (
                ("width", self._picture.width),
                ("height", self._picture.height),
                ("steps", self._picture.steps or self._profile.steps.default),
            )
        )
        self._refuse_sizes(widths, heights, steps, reasons)
        seeds: list[Any] = [None] * count  # None: not in the catalog
        if "seed" in given:
            seeds = _wholes("seed", batch["seed"], None, reasons)
            self._refuse_seeds(seeds, reasons)
        params = self._params_of(batch, reasons)
        first = [1] * count
        rows = CatalogRows(
            range(count), names, prompts, negatives, widths, heights, seeds, steps, params, first
        )
        if reasons:
            rows = rows.only([place for place in range(count) if place not in reasons])
        return Judged(names, rows._replace(seeds=self._seeds(rows)), reasons)

    def _params_of(self, batch: pa.Table, reasons: dict[int, str]) -> list[str]:
        """The further fields of each row, checked once for each set of values that there is."""
        columns = [name for name in batch.column_names if name.startswith(PARAM_PREFIX)]
        if not columns and not self._required:
            return [self._params] * batch.num_rows
        names = [name.removeprefix(PARAM_PREFIX) for name in columns]
        found: dict[tuple[Any, ...], str] = {}
        refused: dict[tuple[Any, ...], str] = {}
        values = [_told_apart(batch[name].to_pylist()) for name in columns]
        rows = list(zip(*values, strict=True)) if columns else [()] * batch.num_rows
        for given in set(rows):
            present = {name: value for name, value in zip(names, given, strict=True) if value is not None}
            try:
                found[given] = self._profile.checked({**self._picture.params, **present})
            except ValueError as error:
                refused[given] = str(error)
        if refused:
            for place, given in enumerate(rows):
                if reason := refused.get(given):
                    reasons.setdefault(place, reason)
        return [found.get(given, "") for given in rows]

    def _refuse_sizes(
        self, widths: Sequence[int], heights: Sequence[int], steps: Sequence[int], reasons: dict[int, str]
    ) -> None:
        refusals = {size: self._api.refusal(*size) for size in kinds(widths, heights, steps)}
        if any(refusals.values()):
            for place, size in enumerate(zip(widths, heights, steps, strict=True)):
                if reason := refusals[size]:
                    reasons.setdefault(place, reason)

    def _refuse_seeds(self, seeds: list[Any], reasons: dict[int, str]) -> None:
        largest = self._api.largest_seed
        for place, seed in enumerate(seeds):
            if seed is not None and not 0 <= seed <= largest:
                reasons.setdefault(place, f"seed {seed} is not between 0 and {largest}")

    def _seeds(self, rows: CatalogRows) -> list[int]:
        """The seeds of rows, those that the catalog says nothing of included."""
        if self._fixed_seed is not None:
            return [self._fixed_seed if seed is None else seed for seed in rows.seeds]
        if self._random is not None:
            draw = self._random.getrandbits
            return [draw(31) if seed is None else seed for seed in rows.seeds]
        if None not in rows.seeds:
            return list(rows.seeds)
        derived = prompt_seeds(rows.prompts)
        pairs = zip(rows.seeds, derived, strict=True)
        return [own if seed is None else seed for seed, own in pairs]


def kinds(*columns: Sequence[Any]) -> Counter[tuple[Any, ...]]:
    """How often each combination of these columns' values occurs; mostly there is only one."""
    if all(map(is_constant, columns)):
        return Counter({tuple(column[0] for column in columns): len(columns[0])})
    return Counter(zip(*columns, strict=True))


def _told_apart(values: list[Any]) -> list[Any]:
    """A parameter's values as keys of a dictionary: true is not 1, and NaN stands for null."""
    return [
        str(value).lower() if isinstance(value, bool) else None if value != value else value
        for value in values
    ]


def _names(values: list[Any], reasons: dict[int, str]) -> list[str]:
    if set(map(type, values)) == {str} and all(values):
        is_plain = max(map(len, values)) <= MAX_ID_LENGTH and not any(map(str.isspace, values))
        if is_plain:
            return values
    names = []
    for place, value in enumerate(values):
        if type(value) is str:
            name = value
        elif isinstance(value, float) and value.is_integer():
            name = str(int(value))  # pandas turns whole numbers into floats where one is missing
        else:
            name = "" if value is None or value != value else str(value)
        if not name or name.isspace():
            reasons.setdefault(place, "blank id")
            name = ""
        elif len(name) > MAX_ID_LENGTH:
            reasons.setdefault(
                place, f"the id has {len(name):,} characters; at most {MAX_ID_LENGTH:,} are allowed"
            )
            name = ""
        names.append(name)
    return names


def _prompts(values: list[str | None], reasons: dict[int, str]) -> list[str]:
    texts = [value or "" for value in values]
    # ASCII has one form only: mostly there is nothing but the outer white space to look for.
    prompts = list(map(str.strip if all(map(str.isascii, texts)) else normalized, texts))
    if not all(prompts) or max(map(len, prompts), default=0) > MAX_PROMPT_LENGTH:
        for place, prompt in enumerate(prompts):
            if not prompt:
                reasons.setdefault(place, "blank prompt")
            elif len(prompt) > MAX_PROMPT_LENGTH:
                reason = (
                    f"the prompt has {len(prompt):,} characters; at most {MAX_PROMPT_LENGTH:,} are allowed"
                )
                reasons.setdefault(place, reason)
    return prompts


def _wholes(name: str, column: pa.ChunkedArray, default: Any, reasons: dict[int, str]) -> list[Any]:  # noqa: ANN401
    """A column's whole numbers, ``default`` where there is none; also where it is no whole number."""
    if pa.types.is_integer(column.type):
        values = column.to_pylist()
        return [default if value is None else value for value in values] if column.null_count else values
    if column.type in {pa.float32(), pa.float64()}:
        numbers = column.to_numpy()  # null is NaN
        absent = np.isnan(numbers)
        if (absent | ((np.abs(numbers) < _EXACT) & (numbers == np.floor(numbers)))).all():
            wholes = np.where(absent, 0, numbers).astype(np.int64).tolist()
            return [default if none else whole for none, whole in zip(absent.tolist(), wholes, strict=True)]
    return [_whole(name, place, value, default, reasons) for place, value in enumerate(column.to_pylist())]


def _whole(name: str, place: int, value: Any, default: Any, reasons: dict[int, str]) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        value = _number(value)
    if value is None or value != value:  # null, or the NaN that stands for it
        return default
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    reasons.setdefault(place, f"{name} {str(value)[:40]!r} is not a whole number")
    return default


def _number(text: str) -> Any:  # noqa: ANN401
    """The number that a text stands for, as CSV readers leave it; None where it is blank, else the text."""
    stripped = text.strip()
    if not stripped:
        return None
    if len(stripped) <= _LONGEST_NUMBER and _NUMBER.fullmatch(stripped):
        return Decimal(stripped)
    return text
