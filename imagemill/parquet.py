"""Local Parquet files, read and written in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROWS = 16_384


def read_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, in batches of at most 16,384.

    Without ``pre_buffer=False``, pyarrow reads the whole file ahead, which only helps over a network.
    """
    with pq.ParquetFile(file, pre_buffer=False) as source:
        yield from source.iter_batches(ROWS, columns=columns)


def read_rows(file: Path, columns: Sequence[str], name: str, wanted: pa.Array) -> Iterator[pa.RecordBatch]:
    """The rows of a file in which the column ``name`` has one of these whole numbers, in batches.

    Row groups that have none of them, by the file's statistics, are not read.
    """
    with pq.ParquetFile(file, pre_buffer=False) as source:
        numbers = np.sort(wanted.to_numpy())
        groups = [
            group
            for group in range(source.num_row_groups)
            if _may_have(source.metadata.row_group(group), name, numbers)
        ]
        for batch in source.iter_batches(ROWS, row_groups=groups, columns=columns) if groups else ():
            yield batch.filter(pc.is_in(batch[name], wanted))


def _may_have(group: pq.RowGroupMetaData, name: str, numbers: npt.NDArray[np.int64]) -> bool:
    columns = map(group.column, range(group.num_columns))
    known = next(column.statistics for column in columns if column.path_in_schema == name)
    if known is None or not known.has_min_max:
        return True
    first, last = np.searchsorted(numbers, known.min), np.searchsorted(numbers, known.max, "right")
    return bool(first < last)


def is_constant(column: Sequence[Any]) -> bool:
    """Whether all values of a column are the same one."""
    return bool(column) and column[0] == column[-1] and column.count(column[0]) == len(column)


def column_of(values: Any, kind: pa.DataType) -> pa.Array:  # noqa: ANN401
    """Values as a column; the same one in all rows is converted once."""
    if isinstance(values, (list, tuple)) and is_constant(values):
        return pa.repeat(pa.scalar(values[0], kind), len(values))
    return pa.array(values, kind)


class RowWriter:
    """Writes a file in row groups of about 16,384 rows, however many rows each write has.

    ``unique`` columns hardly repeat a value: they get no dictionary, which would only take time.
    """

    def __init__(self, file: Path, schema: pa.Schema, *, unique: Collection[str] = ()) -> None:
        repeated = [name for name in schema.names if name not in unique]
        self._writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated)
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, rows: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        if self._rows >= ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting.clear()
        self._rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._write_group()
        self._writer.close()
