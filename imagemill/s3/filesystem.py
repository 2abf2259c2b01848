"""A bucket as one of pyarrow's filesystems, to read catalogs from: the way to it is that of the images."""

from __future__ import annotations

import io
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


class S3File(io.RawIOBase):
    """An object of ``size`` bytes that is read where it is asked for: one request for each read."""

    def __init__(self, store: S3Store, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size = store, path, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any buffer that can be written
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        try:
            content = obstore.get_range(self._store, self._path, start=self._position, length=length)
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error
        buffer[:length] = memoryview(content)
        self._position += length
        return length


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
            size = obstore.head(self._store, path)["size"]
        except FileNotFoundError:
            raise
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error
        return pa.PythonFile(S3File(self._store, path, size), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def _read_only(self, *_: Any) -> None:  # noqa: ANN401
        raise NotImplementedError("catalogs are only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _read_only
    delete_file = move = copy_file = open_output_stream = open_append_stream = _read_only
