"""x"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_THINGS = (
    "ceramic mug",
    "linen shirt",
    "oak chair",
    "brass lamp",
    "wool blanket",
    "glass vase",
    "leather bag",
)
_PLACES = ("on a wooden table", "by a window", "in a bright studio", "on white marble", "in a garden at dusk")
_STYLES = ("product photo, soft light, 85 mm", "catalog shot, white background", "editorial, film grain")
_DUPLICATES = 0.12


def write_catalog(path: Path, rows: int) -> None:
    """A catalog such as a shop has: 12 % of its rows ask for a picture that an earlier one asked for."""
    rng = random.Random(7)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("shelf", pa.string()),
        ]
    )
    prompts: list[str] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, rows, 50_000):
            chosen = []
            numbers = range(first, min(rows, first + 50_000))
            for number in numbers:
                if prompts and rng.random() < _DUPLICATES:
                    chosen.append(prompts[rng.randrange(len(prompts))])
                else:
                    words = (
                        f"{rng.choice(_THINGS)} no. {number}, {rng.choice(_PLACES)}, {rng.choice(_STYLES)}"
                    )
                    prompts.append(words)
                    chosen.append(words)
            columns = [
                [f"sku-{number:07}" for number in numbers],
                chosen,
                [None] * len(numbers),
                [None] * len(numbers),
                [("spring", "summer", "autumn")[number % 3] for number in numbers],
            ]
            writer.write_table(
                pa.Table.from_arrays(
                    [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
                )
            )
