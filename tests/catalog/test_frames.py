"""Frames of any library are stored as a Parquet file that holds their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.catalog.frames import Frame, write_frame
from imagemill.errors import InputError

ROWS = {"sku": ["m-1", "c-2"], "prompt": ["a mug", None], "colour": ["red", "oak"], "price": [9, 120]}
SHOP = pa.table(ROWS)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(pd.DataFrame(ROWS, index=[7, 9]).astype({"colour": "category"}), id="pandas"),
        pytest.param(pl.DataFrame(ROWS, schema_overrides={"colour": pl.Categorical}), id="polars"),
        pytest.param(SHOP, id="pyarrow"),
        pytest.param(SHOP.to_reader(max_chunksize=1), id="a stream"),
        pytest.param(duckdb.from_arrow(SHOP), id="DuckDB"),
    ],
)
def test_a_frame_is_stored_with_all_its_rows(frame: Any, tmp_path: Path) -> None:
    assert isinstance(frame, Frame)
    write_frame(frame, tmp_path / "catalog.parquet")
    assert pq.read_table(tmp_path / "catalog.parquet").to_pydict() == ROWS


def test_a_named_index_is_a_column_and_nested_text_stays(tmp_path: Path) -> None:
    write_frame(pd.DataFrame(ROWS).set_index("sku"), tmp_path / "catalog.parquet")
    assert pq.read_table(tmp_path / "catalog.parquet", columns=["sku"]).to_pydict() == {"sku": ROWS["sku"]}
    nested = {"tags": [["new", None], []], "size": [{"unit": "cm"}, {"unit": None}]}
    write_frame(pl.DataFrame(nested), tmp_path / "catalog.parquet")
    assert pq.read_table(tmp_path / "catalog.parquet").to_pydict() == nested


def test_rows_stay_in_batches(tmp_path: Path) -> None:
    write_frame(duckdb.sql("select 'p' || i as prompt from range(40000) t(i)"), tmp_path / "catalog.parquet")
    stored = pq.ParquetFile(tmp_path / "catalog.parquet")
    assert stored.metadata.num_rows == 40_000
    assert stored.num_row_groups > 1


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (pd.DataFrame({"prompt": ["a mug", 7]}), "column prompt"),
        (pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]), "Duplicate column names"),
        (pa.table({"age": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), "month_day_nano"),
        (pd.DataFrame({"prompt": ["a", "b"], "stock": [2**70, 1]}), "too (big|large)"),
        (duckdb.sql("select 'a mug' as prompt, cast(i as int) as stock from (values ('q')) t(i)"), "'q'"),
    ],
)
def test_what_cannot_be_stored_is_named(frame: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        write_frame(frame, tmp_path / "catalog.parquet")
