"""Reads a catalog: Parquet files, local or on S3, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from imagemill.catalog import values
from imagemill.catalog.columns import TEXTS, Columns, columns_of, holds_text
from imagemill.catalog.places import Place, find_places
from imagemill.catalog.templates import CatalogTemplates
from imagemill.catalog.variations import Variations
from imagemill.errors import InputError
from imagemill.settings import PARAM_PREFIX, CatalogSettings

BATCH_ROWS = 10_000
BATCH_BYTES = 8 * 2**20
"""The most memory for a batch, estimated from the mean row size of its row group."""

_BUFFER = 4 * 2**20
"""How much of a column is read at once, in bytes."""

_READ_AHEAD = 64 * 2**20
"""Row groups up to this size are read as a whole, in few requests; of larger ones, a piece of each column."""

_REASON = "reason"
"""The column of a batch that says why rows could not be read; absent if all could."""


@dataclass(frozen=True, slots=True)
class CatalogFiles:
    """A catalog's files in order, their filesystem, their number of rows, and what its columns are used for.

    ``digest`` stands for the content: it is made of the files' footers, which hold counts, offsets and
    extremes of every column.
    """

    places: Sequence[Place]
    filesystem: pa.fs.FileSystem
    rows: int
    usage: Columns
    limit: int | None
    digest: str
    templates: CatalogTemplates = field(default_factory=CatalogTemplates)
    variations: Variations = field(default_factory=Variations)

    @property
    def columns(self) -> dict[str, str]:
        """Imagemill's names of the columns that it reads itself, with the catalog's."""
        return self.usage.used

    @property
    def carried(self) -> pa.Schema:
        """The other columns, which the manifest keeps."""
        return self.usage.carried

    def for_counting(self) -> CatalogFiles:
        """The same catalog with only those carried columns for which a row may be rejected.

        They hold text, which may be broken, or have other types in some files than in others.
        """
        doubtful = [
            each for each in self.carried if holds_text(each.type) or each.name in self.usage.drifting
        ]
        return replace(self, usage=replace(self.usage, carried=pa.schema(doubtful)))

    def batches(self) -> Iterator[pa.Table]:
        """Tables of at most 10,000 rows: imagemill's columns under its own names, then the carried ones.

        Rows that cannot be read have nulls; :func:`unreadable` says which they are.
        """
        left = self.limit
        for place in self.places:
            with ExitStack() as stack:
                try:
                    source = stack.enter_context(self.filesystem.open_input_file(place.path))
                    parquet = _opened(source)
                    for batch in self._read(parquet):
                        table = self._table(batch, place)
                        if left is not None:
                            table = table.slice(0, left)
                            left -= table.num_rows
                        yield table
                        if left == 0:
                            return
                except (pa.ArrowException, OSError, UnicodeError) as error:
                    raise InputError(
                        f"The catalog file {place.path!r} cannot be read to its end: {_first_line(error)}"
                    ) from error

    def _read(self, parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
        """A file's batches of the columns that are needed, each of a bounded size."""
        names = parquet.schema_arrow.names
        wanted = [name for name in self._needed() if name in names]
        for group in range(parquet.num_row_groups):
            rows = _batch_rows(parquet.metadata.row_group(group))
            if wanted:
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=wanted):
                    yield batch
                    if rows < BATCH_ROWS:  # large values: what they took is not kept for later ones
                        pa.default_memory_pool().release_unused()
            else:  # all is in the names of the folders
                count = parquet.metadata.row_group(group).num_rows
                for start in range(0, count, rows):
                    yield pa.RecordBatch.from_pydict({"": pa.nulls(min(rows, count - start))})

    def _needed(self) -> list[str]:
        """The catalog's columns that are read: used, carried, or read by a template."""
        seen = {
            name.removeprefix("carried:")
            for template in self.templates.made.values()
            for name in template.columns
            if name.startswith("carried:")
        }
        return list(dict.fromkeys([*self.columns.values(), *self.carried.names, *sorted(seen)]))

    def _table(self, batch: pa.RecordBatch, place: Place) -> pa.Table:
        reasons: values.Reasons = {}
        raw = {name: self._column(batch, name, place, reasons) for name in self._needed()}
        columns: dict[str, pa.Array] = {}
        for own, name in self.columns.items():
            if own in TEXTS:
                columns[own] = values.texts(raw[name], name, reasons)
            elif own == "id":
                columns[own] = values.ids(raw[name])
            else:
                is_param = own.startswith(PARAM_PREFIX)
                columns[own] = values.params(raw[name], name, reasons) if is_param else raw[name]
        for name in self._needed():
            if name in self.carried.names:
                kind = self.carried.field(name).type
                columns[f"carried:{name}"] = values.carried(raw[name], kind, name, reasons)
            elif name not in self.columns.values():
                columns[f"carried:{name}"] = raw[name]
        if reasons:
            by_row = [reasons.get(row) for row in range(batch.num_rows)]
            columns[_REASON] = pa.array(by_row, pa.string())
        return pa.table(columns)

    def _column(self, batch: pa.RecordBatch, name: str, place: Place, reasons: values.Reasons) -> pa.Array:
        if name in batch.schema.names:
            return values.decoded(batch.column(batch.schema.names.index(name)), name, reasons)
        value = place.partitions.get(name)
        return pa.nulls(batch.num_rows) if value is None else pa.repeat(value, batch.num_rows)


def _opened(source: pa.NativeFile) -> pq.ParquetFile:
    parquet = pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False)
    known = parquet.metadata
    sizes = (known.row_group(group).total_byte_size for group in range(known.num_row_groups))
    if max(sizes, default=0) > _READ_AHEAD:
        return parquet
    return pq.ParquetFile(source, metadata=known, buffer_size=_BUFFER)


def unreadable(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """A batch without its column of reasons, and the reasons by the rows' places."""
    if _REASON not in table.column_names:
        return table, {}
    reasons = table[_REASON].to_pylist()
    found = {place: reason for place, reason in enumerate(reasons) if reason is not None}
    return table.drop_columns([_REASON]), found


def open_catalog(
    settings: CatalogSettings,
    *,
    session: boto3.Session | None = None,
    endpoint_url: str | None = None,
) -> CatalogFiles:
    """Find a catalog's files and read their schemas.

    ``session`` and ``endpoint_url`` are for s3:// catalogs, as for the output bucket.

    Raises:
        InputError: no such file, not Parquet, or no such column. The message suggests the closest column.
    """
    filesystem, places = find_places(settings.path, session=session, endpoint_url=endpoint_url)
    full: dict[str, pa.Schema] = {}
    empty: dict[str, pa.Schema] = {}
    rows, digest = 0, blake2b(digest_size=16)
    for place in places:
        with ExitStack() as stack:
            try:
                source = stack.enter_context(filesystem.open_input_file(place.path))
                parquet = pq.ParquetFile(source)
                schema = parquet.schema_arrow
                digest.update(_footer(source))
            except PermissionError as error:
                raise InputError(f"No permission to read the catalog file {place.path!r}.") from error
            except UnicodeEncodeError as error:
                raise InputError(
                    f"The name of the catalog file {place.path!r} is not UTF-8: rename it."
                ) from error
            except FileNotFoundError as error:
                raise InputError(
                    f"The catalog file {place.path!r} was removed, or is a link to a file that is not there."
                ) from error
            except (pa.ArrowException, OSError, UnicodeError) as error:
                reason = _first_line(error).rstrip(".")
                raise InputError(
                    f"The catalog file {place.path!r} is not a Parquet file ({reason}):"
                    " write it again, or take it out of the catalog."
                ) from error
            for name in place.partitions:
                if name not in schema.names:
                    schema = schema.append(pa.field(name, pa.string()))
            (full if parquet.metadata.num_rows else empty)[place.path] = schema
            rows += parquet.metadata.num_rows
    usage = columns_of(settings, full or _of_no_rows(empty))
    names = [*usage.used.values(), *usage.carried.names, *usage.left_out]
    templates = CatalogTemplates.of(settings, names, usage.used)
    return CatalogFiles(
        places,
        filesystem,
        rows if settings.limit is None else min(rows, settings.limit),
        usage,
        settings.limit,
        digest.hexdigest(),
        templates,
        Variations.of(settings, names, templates),
    )


def _of_no_rows(files: dict[str, pa.Schema]) -> dict[str, pa.Schema]:
    """Schemas of files without rows, whose columns may have any type."""
    return {file: pa.schema([(each.name, pa.null()) for each in schema]) for file, schema in files.items()}


def _batch_rows(group: Any) -> int:  # noqa: ANN401 - pyarrow has no types
    """How many rows of a row group make a batch, by the size of all its columns.

    Not by that of the columns that are read: pyarrow ends the process where a single column's metadata is
    damaged.
    """
    return int(min(BATCH_ROWS, max(1, BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))))


def _footer(source: pa.NativeFile) -> bytes:
    size = source.size()
    length = int.from_bytes(source.read_at(4, size - 8), "little")
    footer: bytes = source.read_at(length, size - 8 - length)
    return footer


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
