"""Several pictures per row: each combination of the varied values, with several seeds each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

from imagemill.catalog.keys import variation_seed
from imagemill.catalog.rows import CatalogRows
from imagemill.catalog.templates import CatalogTemplates, varied_column
from imagemill.errors import InputError
from imagemill.settings import PARAM_PREFIX, VARIED_COLUMNS, CatalogSettings

_WHOLE = frozenset({"width", "height", "steps", "seed"})


@dataclass(frozen=True, slots=True)
class Variations:
    """How the pictures of one row differ.

    Variants are numbered from 1: first the combinations with the row's own seed, in the order of the
    settings, then the same with each further seed, so that more seeds leave the earlier numbers as they are.
    """

    seeds: int = 1
    combinations: Sequence[Mapping[str, str]] = ({},)

    @classmethod
    def of(cls, settings: CatalogSettings, names: Sequence[str], templates: CatalogTemplates) -> Variations:
        """The variations of a catalog with columns of these names.

        Raises:
            InputError: a varied name is a column of the catalog, or nothing reads it.
        """
        for name in settings.vary:
            if name in VARIED_COLUMNS or name.startswith(PARAM_PREFIX):
                continue
            if name in names:
                raise InputError(f"The catalog has a column {name!r} of its own: vary another name.")
            if varied_column(name) not in templates.columns:
                raise InputError(
                    f"Varying {name!r} changes no picture: no template reads it. Use {{{{ {name} }}}} in the"
                    f" prompt template, or vary one of {', '.join(VARIED_COLUMNS)} or a param_NAME."
                )
        values = product(*settings.vary.values())
        combinations = [dict(zip(settings.vary, chosen, strict=True)) for chosen in values]
        return cls(settings.variations, combinations)

    @property
    def per_row(self) -> int:
        """Pictures per row."""
        return self.seeds * len(self.combinations)

    @property
    def carried(self) -> list[str]:
        """The varied names that become columns of plan and manifest, which have the others already."""
        return [name for name in self.combinations[0] if name not in VARIED_COLUMNS]

    def varied(self, variants: Sequence[int]) -> list[str]:
        """The varied values of these variants as JSON, "" for none."""
        texts = [json.dumps(one, ensure_ascii=False) if one else "" for one in self.combinations]
        if len(texts) == 1:
            return texts * len(variants)
        return [texts[(variant - 1) % len(texts)] for variant in variants]

    def variants_of(self, places: Sequence[int]) -> list[int]:
        """The variant that each place of a combined table is."""
        return [place % len(self.combinations) + 1 for place in places]

    def combined(self, table: pa.Table) -> pa.Table:
        """The table with each row once per combination, and columns for the varied values."""
        if not self.combinations[0]:
            return table
        rows, count = table.num_rows, len(self.combinations)
        table = table.combine_chunks().take(np.repeat(np.arange(rows), count))
        turns = np.tile(np.arange(count), rows)
        for name in self.combinations[0]:
            texts = [one[name] for one in self.combinations]
            table = table.append_column(varied_column(name), pa.array(texts, pa.string()).take(turns))
            given: dict[str, list[Any]]
            if name == "size":
                sizes = [text.split("x") for text in texts]
                given = {
                    "width": [int(size[0]) for size in sizes],
                    "height": [int(size[1]) for size in sizes],
                }
            elif name in _WHOLE:
                given = {name: [int(text) for text in texts]}
            elif name in VARIED_COLUMNS or name.startswith(PARAM_PREFIX):
                given = {name: texts}
            else:
                continue
            for column, values in given.items():
                if column in table.column_names:
                    table = table.drop_columns(column)
                table = table.append_column(column, pa.array(values).take(turns))
        return table

    def seeded(self, rows: CatalogRows) -> CatalogRows:
        """Rows of a combined table, each once per seed; a row's variants follow each other."""
        count = len(self.combinations)
        places = np.asarray(rows.places, np.int64)
        if self.seeds == 1:
            return rows._replace(variants=(places % count + 1).tolist())
        turns = np.repeat(np.arange(self.seeds), len(places))
        variants = turns * count + np.tile(places % count, self.seeds) + 1
        order = np.lexsort((variants, np.tile(places // count, self.seeds)))
        repeated = rows.only((order % len(places)).tolist()) if len(places) else rows
        turned = turns[order].tolist()
        seeds = [
            seed if turn == 0 else variation_seed(seed, turn)
            for seed, turn in zip(repeated.seeds, turned, strict=True)
        ]
        return repeated._replace(seeds=seeds, variants=variants[order].tolist())
