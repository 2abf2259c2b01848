"""Stores a frame as a Parquet file: a pandas DataFrame, or anything else that gives its rows to Arrow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from imagemill.errors import InputError
from imagemill.parquet import ROWS

_UNNAMED_INDEX = re.compile(r"__index_level_[0-9]+__")
"""How pandas calls an index that has no name, such as the one a filter leaves: the row numbers of before."""


@runtime_checkable
class Frame(Protocol):
    """Anything with the Arrow C stream interface: a DataFrame, a pyarrow Table, a DuckDB relation."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The rows, as an Arrow stream in a capsule."""


def write_frame(frame: Frame, file: Path) -> None:
    """Write a frame's rows into a Parquet file, batch by batch.

    Raises:
        InputError: it holds something that Arrow or Parquet cannot.
    """
    try:
        with pa.RecordBatchReader.from_stream(frame) as batches:
            given = batches.schema
            places = [place for place, name in enumerate(given.names) if not _UNNAMED_INDEX.fullmatch(name)]
            schema = pa.schema([(given.names[place], _storable(given.types[place])) for place in places])
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for batch in batches:
                    columns = [_decoded(batch.column(place)) for place in places]
                    rows = pa.Table.from_arrays(columns, schema.names).cast(schema)
                    writer.write_table(rows, row_group_size=ROWS)
    except OSError:
        raise
    except Exception as error:  # whatever the frame's own library raises: a lazy one computes its rows now
        reason = " ".join(map(str, error.args))[:300]
        raise InputError(
            f"The frame cannot be stored as Parquet ({reason}). Convert or drop that column."
        ) from error


def _storable(kind: pa.DataType) -> pa.DataType:
    """The type as which Parquet holds the values of a type."""
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return _storable(kind.value_type)
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.large_list(_storable(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(each.name, _storable(each.type)) for each in kind])
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(kind, kind)


def _decoded(column: pa.Array) -> pa.Array:
    """A column without its encoding."""
    if pt.is_dictionary(column.type):  # that of polars has views for values, which Arrow cannot look up
        values = column.dictionary.cast(_storable(column.type.value_type))
        return pa.DictionaryArray.from_arrays(column.indices, values).dictionary_decode()
    return pc.run_end_decode(column) if pt.is_run_end_encoded(column.type) else column
