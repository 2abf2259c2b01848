"""A bucket as one of pyarrow's filesystems, to read catalogs from: the way to it is that of the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pyarrow.fs
from botocore.exceptions import BotoCoreError
from obstore.exceptions import BaseError as ObstoreError
from pyarrow.fs import FileInfo, FileSelector, FileType

from imagemill.s3.connection import S3Connection

if TYPE_CHECKING:
    from obstore.store import S3Store


def s3_filesystem(connection: S3Connection) -> pa.fs.FileSystem:
    """The files of a bucket, by their keys; only to be read.

    Raises:
        InputError: the bucket is not there, or does not let us in.
    """
    client = connection.client(attempts=2)
    try:
        connection.locate(client, "")
    finally:
        client.close()
    return pyarrow.fs.PyFileSystem(_Files(connection.store(retries=3)))


class _Files(pyarrow.fs.FileSystemHandler):  # type: ignore[misc] # pyarrow has no types
    def __init__(self, store: S3Store) -> None:
        self._store = store

    def get_type_name(self) -> str:
        return "obstore"

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        try:
            return FileInfo(path, FileType.File, size=obstore.head(self._store, path)["size"])
        except (FileNotFoundError, ValueError):  # a path that no object can have
            return FileInfo(path, FileType.NotFound)
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        prefix = f"{selector.base_dir.rstrip('/')}/" if selector.base_dir.strip("/") else None
        try:
            pages = obstore.list(self._store, prefix)
            return [FileInfo(o["path"], FileType.File, size=o["size"]) for page in pages for o in page]
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error

    def open_input_file(self, path: str) -> pa.PythonFile:
        try:
            return pa.PythonFile(obstore.open_reader(self._store, path), mode="r")
        except FileNotFoundError:
            raise
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def _read_only(self, *_: Any) -> None:  # noqa: ANN401
        raise NotImplementedError("catalogs are only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _read_only
    delete_file = move = copy_file = open_output_stream = open_append_stream = _read_only
