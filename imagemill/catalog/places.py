"""Finds a catalog's files, locally or on S3: a file, a folder or a glob, with the same meaning on both."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import pyarrow.fs

from imagemill.errors import InputError
from imagemill.formatting import cut
from imagemill.s3.connection import S3Connection
from imagemill.s3.filesystem import s3_filesystem

SUFFIXES = (".parquet", ".parq", ".pq")
"""How a Parquet file's name ends, ignoring case."""

_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
_WILDCARD = re.compile(r"[*?\[]")
_ICEBERG = re.compile(r"metadata/[^/]+\.metadata\.json")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_OF_TABLE = (
    "{path!r} is {kind} table, whose folder also holds files of its earlier versions. Write its rows as they"
    " are now into a Parquet file, for example in DuckDB: COPY (SELECT * FROM {scan}('{path}')) TO"
    " 'catalog.parquet'."
)


@dataclass(frozen=True, slots=True)
class Place:
    """A catalog's file, and the columns that its folders give it: ``lang=de/`` is ``{"lang": "de"}``."""

    path: str
    partitions: dict[str, str | None] = field(default_factory=dict)


def is_on_s3(path: str) -> bool:
    """Whether a catalog's path is an address on S3."""
    return path.startswith(("s3://", "s3a://", "s3n://"))


def find_places(
    path: str, *, session: boto3.Session | None = None, endpoint_url: str | None = None
) -> tuple[pyarrow.fs.FileSystem, list[Place]]:
    """The files of a catalog in order, and the filesystem that they are in.

    Raises:
        InputError: there are none, or they are a table's in a format of its own.
    """
    if is_on_s3(path):
        bucket, _, key = path.partition("://")[2].partition("/")
        connection = S3Connection(bucket, endpoint_url=endpoint_url, session=session)
        wildcard = _WILDCARD.search(key)
        folder = key[: wildcard.start()].rpartition("/")[0] if wildcard else key.rstrip("/")
        files = s3_filesystem(connection, key, f"{folder}/" if folder else "")
        try:
            return files, _found(_S3(files), path, key)
        except OSError as error:
            raise InputError(f"The catalog {path!r} cannot be reached: {cut(str(error), 200)}") from error
    if _SCHEME.match(path) and not path.startswith("file://") and not Path(path).exists():
        raise InputError(
            f"The catalog {path!r} is neither a path on this machine nor of the form s3://BUCKET/PATH."
        )
    local = unquote(urlsplit(path).path) if path.startswith("file://") else path
    return pyarrow.fs.LocalFileSystem(), _found(_Disk(), path, str(Path(local).expanduser()))


class _Disk:
    """The files of this machine."""

    def is_file(self, path: str) -> bool:
        return Path(path).is_file()

    def is_folder(self, path: str) -> bool:
        return Path(path).is_dir()

    def below(self, folder: str, depth: int | None) -> list[str]:
        """The paths of the files below a folder, relative to it, down to a depth."""
        found: list[str] = []
        seen: set[str] = set()
        for place, folders, names in os.walk(folder or ".", followlinks=True):
            relative = os.path.relpath(place, folder or ".")
            parts = [] if relative == "." else list(Path(relative).parts)
            found += ["/".join([*parts, name]) for name in names]
            real = os.path.realpath(place)
            if real in seen or (depth is not None and len(parts) + 1 >= depth):
                folders.clear()
            seen.add(real)
        return found


class _S3:
    """The files of a bucket."""

    def __init__(self, files: pyarrow.fs.FileSystem) -> None:
        self._files = files

    def is_file(self, path: str) -> bool:
        return bool(path) and self._files.get_file_info(path).type is pyarrow.fs.FileType.File

    def is_folder(self, path: str) -> bool:
        return bool(self.below(path, None))

    def below(self, folder: str, depth: int | None) -> list[str]:  # noqa: ARG002 - a listing has no depth
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        start = len(folder.rstrip("/")) + 1 if folder.strip("/") else 0
        found = self._files.get_file_info(selector)
        return [f.path[start:] for f in found if f.type is pyarrow.fs.FileType.File]


def _found(disk: _Disk | _S3, shown: str, path: str) -> list[Place]:
    if disk.is_file(path):  # also one whose name holds the signs of a glob
        return [Place(path)]
    folder = path.rstrip("/")
    wildcard = _WILDCARD.search(path)
    if wildcard is None or disk.is_folder(folder):
        return _in_folder(disk, shown, folder)
    folder, pattern = path[: wildcard.start()].rpartition("/")[0], ""
    pattern = path[len(folder) + 1 :] if folder or path.startswith("/") else path
    parts = pattern.split("/")
    below = disk.below(folder or ("/" if path.startswith("/") else ""), None if "**" in parts else len(parts))
    named = re.compile(_regex(parts))
    explicit = [part for part in parts if part.startswith(("_", "."))]
    found = [name for name in below if named.fullmatch(name) and not _is_hidden(name, explicit)]
    if "." not in parts[-1]:  # nothing is said about what the names end in
        found = [name for name in found if name.lower().endswith(SUFFIXES)]
    if not found:
        raise InputError(f"No file matches the catalog {shown!r}.")
    return _places(folder, found, rooted=path.startswith("/"))


def _in_folder(disk: _Disk | _S3, shown: str, folder: str) -> list[Place]:
    below = disk.below(folder, None) if disk.is_folder(folder) else None
    if not below:
        on_s3 = isinstance(disk, _S3)
        what = "does not exist, or has no .parquet files" if on_s3 else "does not exist"
        raise InputError(
            f"The catalog {shown!r} {what}."
            if below is None
            else f"The catalog folder {shown!r} has no .parquet files."
        )
    _refuse_tables(shown, below)
    found = [name for name in below if name.lower().endswith(SUFFIXES) and not _is_hidden(name)]
    if not found:
        raise InputError(f"The catalog folder {shown!r} has no .parquet files.")
    return _places(folder, found)


def _refuse_tables(shown: str, below: Sequence[str]) -> None:
    if any(name.startswith("_delta_log/") for name in below):
        raise InputError(
            "The catalog " + _OF_TABLE.format(path=shown, kind="a Delta Lake", scan="delta_scan")
        )
    if any(_ICEBERG.fullmatch(name) for name in below):
        raise InputError(
            "The catalog " + _OF_TABLE.format(path=shown, kind="an Iceberg", scan="iceberg_scan")
        )


def _places(folder: str, below: Iterable[str], *, rooted: bool = False) -> list[Place]:
    start = f"{folder}/" if folder or rooted else ""
    return [Place(f"{start}{name}", _partitions(name)) for name in sorted(below)]


def _partitions(name: str) -> dict[str, str | None]:
    """The columns in a file's folders, as Hive and Spark name them."""
    columns: dict[str, str | None] = {}
    for part in name.split("/")[:-1]:
        column, separator, value = part.partition("=")
        if separator and column:
            columns[unquote(column)] = None if value == _NO_PARTITION else unquote(value)
    return columns


def _is_hidden(name: str, explicit: Sequence[str] = ()) -> bool:
    """Whether Spark and Arrow would skip a file: a part of its path begins with _ or ."""
    return any(
        part.startswith(("_", ".")) and "=" not in part and not any(fnmatchcase(part, e) for e in explicit)
        for part in name.split("/")
    )


def _regex(parts: Sequence[str]) -> str:
    """A glob as a regular expression: ``*`` stays within a folder, ``**`` is any number of folders."""
    made = ""
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if part == "**":
            made += ".*" if last else "(?:.*/)?"
        else:
            made += _part_regex(part) + ("" if last else "/")
    return f"(?s:{made})"


def _part_regex(part: str) -> str:
    made, at = "", 0
    while at < len(part):
        sign = part[at]
        at += 1
        end = part.find("]", at + 1) if sign == "[" else -1
        if sign == "*":
            made += "[^/]*"
        elif sign == "?":
            made += "[^/]"
        elif end > 0:
            inside = part[at:end].replace("\\", "\\\\")
            made += f"[{'^' + inside[1:] if inside.startswith('!') else inside.replace('^', chr(92) + '^')}]"
            at = end + 1
        else:
            made += re.escape(sign)
    return made
