"""Reads a catalog: Parquet files, local or on S3, in batches."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from imagemill.catalog.templates import CatalogTemplates
from imagemill.catalog.variations import Variations
from imagemill.errors import InputError
from imagemill.s3.connection import S3Connection
from imagemill.s3.filesystem import s3_filesystem
from imagemill.settings import CATALOG_COLUMNS, PARAM_PREFIX, CatalogSettings

BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class CatalogFiles:
    """A catalog's files in order, their filesystem, their number of rows, and the columns to read.

    ``columns`` maps imagemill's names to the catalog's; ``carried`` are the other columns, for the manifest.
    ``digest`` stands for the content: it is made of the files' footers, which hold counts, offsets and
    extremes of every column.
    """

    files: Sequence[str]
    filesystem: pa.fs.FileSystem
    rows: int
    columns: dict[str, str]
    carried: pa.Schema
    limit: int | None
    digest: str
    templates: CatalogTemplates = field(default_factory=CatalogTemplates)
    variations: Variations = field(default_factory=Variations)

    def batches(self) -> Iterator[pa.Table]:
        """Tables of at most 10,000 rows: imagemill's columns under its own names, then the carried ones."""
        left = self.limit
        wanted = [*self.columns.values(), *self.carried.names]
        names = [*self.columns, *[f"carried:{name}" for name in self.carried.names]]
        for file in self.files:
            with self.filesystem.open_input_file(file) as source:
                try:
                    parquet = pq.ParquetFile(source)
                    missing = [name for name in wanted if name not in parquet.schema_arrow.names]
                    if missing:
                        raise InputError(
                            f"The catalog file {file!r} lacks the column {missing[0]!r}, which the"
                            " catalog's first file has."
                        )
                    for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
                        table = pa.Table.from_batches([batch]).select(wanted).rename_columns(names)
                        used = self.templates.columns.union(self.columns).intersection(names)
                        table.select(sorted(used)).validate(full=True)  # what says it is text is UTF-8
                        if left is not None:
                            table = table.slice(0, left)
                            left -= table.num_rows
                        yield table
                        if left == 0:
                            return
                except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                    raise InputError(
                        f"The catalog file {file!r} cannot be read to its end: {_first_line(error)}"
                    ) from error


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
    if settings.path.startswith("s3://"):
        bucket, _, path = settings.path.removeprefix("s3://").partition("/")
        filesystem = s3_filesystem(S3Connection(bucket, endpoint_url=endpoint_url, session=session))
        files = _s3_files(filesystem, settings.path, path)
    else:
        filesystem = pyarrow.fs.LocalFileSystem()
        files = _local_files(settings.path)
    schema, rows, digest = None, 0, blake2b(digest_size=16)
    for file in files:
        with ExitStack() as stack:
            try:
                source = stack.enter_context(filesystem.open_input_file(file))
                parquet = pq.ParquetFile(source)
                digest.update(_footer(source))
            except PermissionError as error:
                raise InputError(f"No permission to read the catalog file {file!r}.") from error
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"The catalog file {file!r} is not a Parquet file ({_first_line(error)})."
                ) from error
            schema = schema or parquet.schema_arrow
            rows += parquet.metadata.num_rows
    if schema is None:
        raise InputError(f"The catalog {settings.path!r} has no files.")
    columns = _column_map(settings, schema)
    templates = CatalogTemplates.of(settings, schema.names, columns)
    taken = set(columns.values())
    carried = pa.schema([field for field in schema if field.name not in taken])
    return CatalogFiles(
        files,
        filesystem,
        rows if settings.limit is None else min(rows, settings.limit),
        columns,
        carried,
        settings.limit,
        digest.hexdigest(),
        templates,
        Variations.of(settings, schema.names, templates),
    )


def _footer(source: pa.NativeFile) -> bytes:
    size = source.size()
    length = int.from_bytes(source.read_at(4, size - 8), "little")
    footer: bytes = source.read_at(length, size - 8 - length)
    return footer


def _column_map(settings: CatalogSettings, schema: pa.Schema) -> dict[str, str]:
    names: list[str] = schema.names
    for own, name in settings.columns.items():
        if name not in names:
            raise InputError(
                f"The catalog has no column {name!r} to use as {own!r}"
                f"{_nearest(name, names)}. Its columns: {_listed(names)}."
            )
    renamed = set(settings.columns.values())
    columns = {
        own: settings.columns.get(own, own)
        for own in (*CATALOG_COLUMNS, *[own for own in settings.columns if own.startswith(PARAM_PREFIX)])
        if own in settings.columns or (own in names and own not in renamed)
    }
    for made in settings.templates:  # what a template makes is carried, where the catalog has it too
        columns.pop(made, None)
    if "prompt" in settings.templates:
        return columns
    if "prompt" not in columns:
        raise InputError(
            f"The catalog has no column 'prompt'{_nearest('prompt', names)}. Name the column that holds"
            " the prompts, as in --column prompt=NAME, or make them from columns with --prompt-template. Its"
            f" columns: {_listed(names)}."
        )
    kind = schema.field(columns["prompt"]).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(
            f"The catalog's column {columns['prompt']!r} holds {kind}, not text. Name the column that holds"
            " the prompts, as in --column prompt=NAME."
        )
    return columns


def _nearest(name: str, names: Sequence[str]) -> str:
    lowered = {known.lower(): known for known in reversed(names)}
    usual = ["text", "caption", "description", "prompts", "title"] if name == "prompt" else []
    for wanted in [name, *usual]:
        if close := difflib.get_close_matches(wanted.lower(), lowered, 1, 0.6):
            return f"; the closest is {lowered[close[0]]!r}"
    return ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return f"{shown}, …" if len(names) > 20 else shown or "none"


def _local_files(path: str) -> list[str]:
    place = Path(path).expanduser()
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        files = sorted(str(file) for file in place.rglob("*.parquet") if file.is_file())
        if not files:
            raise InputError(f"The catalog folder {path!r} has no .parquet files.")
        return files
    if glob.has_magic(path):
        found = glob.glob(str(place), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute one
        files = sorted(file for file in found if Path(file).is_file())
        if not files:
            raise InputError(f"No file matches the catalog {path!r}.")
        return files
    raise InputError(f"The catalog {path!r} does not exist.")


def _s3_files(filesystem: pa.fs.FileSystem, uri: str, path: str) -> list[str]:
    path = path.rstrip("/")
    try:
        if glob.has_magic(path):
            folder = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
            found = [f.path for f in _walk(filesystem, folder) if fnmatch.fnmatchcase(f.path, path)]
        else:
            info = filesystem.get_file_info(path)
            if info.type is pyarrow.fs.FileType.File:
                found = [path]
            else:
                found = [f.path for f in _walk(filesystem, path) if f.path.endswith(".parquet")]
    except OSError as error:
        raise InputError(f"The catalog {uri!r} cannot be reached: {_first_line(error)}") from error
    if not found:
        raise InputError(f"The catalog {uri!r} does not exist, or has no .parquet files.")
    return sorted(found)


def _walk(filesystem: pa.fs.FileSystem, folder: str) -> list[pa.fs.FileInfo]:
    selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return [f for f in filesystem.get_file_info(selector) if f.type is pyarrow.fs.FileType.File]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
