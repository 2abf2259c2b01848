"""A bucket as one of pyarrow's filesystems, to read catalogs from: the way to it is that of the images."""

from __future__ import annotations

import io
import weakref
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError as ObstoreError
from pyarrow.fs import FileInfo, FileSelector, FileType
from urllib3.exceptions import HTTPError

from imagemill.errors import InputError
from imagemill.s3.connection import S3Connection

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from obstore.store import S3Store


def s3_filesystem(connection: S3Connection, key: str, folder: str) -> pa.fs.FileSystem:
    """The files of a bucket, by their keys; only to be read.

    The right to list a ``folder`` (``a/b/``) is enough, or to read the object ``key``.

    Raises:
        InputError: the bucket is not there, or does not let us in.
    """
    client = connection.client(attempts=2)
    try:
        connection.locate(client, folder)
    except InputError as error:
        if not (isinstance(error.__cause__, ClientError) and _is_readable(connection, key)):
            raise
    finally:
        client.close()
    return pyarrow.fs.PyFileSystem(_Files(connection.client(attempts=4), connection.bucket))


def _is_readable(connection: S3Connection, key: str) -> bool:
    client = connection.client(attempts=2)
    try:
        client.head_object(Bucket=connection.bucket, Key=key)
    except (BotoCoreError, ClientError):
        return False
    finally:
        client.close()
    return True


class _RangeFile(io.RawIOBase):
    """An object of ``size`` bytes that is read where it is asked for: one request for each read."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__()
        self._path, self._size = path, size
        self._position = 0

    def _range(self, length: int) -> Any:  # noqa: ANN401 - any buffer
        raise NotImplementedError

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
        content = memoryview(self._range(length))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class S3File(_RangeFile):
    """An object that is read through obstore."""

    def __init__(self, store: S3Store, path: str, size: int) -> None:
        super().__init__(path, size)
        self._store = store

    def _range(self, length: int) -> Any:  # noqa: ANN401
        try:
            return obstore.get_range(self._store, self._path, start=self._position, length=length)
        except (ObstoreError, BotoCoreError) as error:
            raise OSError(str(error)) from error


class _Boto3File(_RangeFile):
    """The same through boto3, which takes every key; obstore takes none with an empty part, ``a//b``."""

    def __init__(self, client: BaseClient, bucket: str, key: str, size: int) -> None:
        super().__init__(key, size)
        self._client, self._bucket = client, bucket

    def _range(self, length: int) -> bytes:
        wanted = f"bytes={self._position}-{self._position + length - 1}"
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._path, Range=wanted)
            content: bytes = answer["Body"].read()
        except (BotoCoreError, ClientError, HTTPError) as error:
            raise OSError(str(error)) from error
        return content


class _Files(pyarrow.fs.FileSystemHandler):  # type: ignore[misc] # pyarrow has no types
    def __init__(self, client: BaseClient, bucket: str) -> None:
        self._client, self._bucket = client, bucket
        weakref.finalize(self, client.close)

    def get_type_name(self) -> str:
        return "boto3"

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        try:
            size = self._client.head_object(Bucket=self._bucket, Key=path)["ContentLength"]
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return FileInfo(path, FileType.NotFound)
            raise OSError(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
        return FileInfo(path, FileType.File, size=size)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        prefix = f"{selector.base_dir.rstrip('/')}/" if selector.base_dir.strip("/") else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            return [
                FileInfo(item["Key"], FileType.File, size=item["Size"])
                for page in pages
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")  # the mark of an empty folder
            ]
        except (ClientError, BotoCoreError) as error:
            raise OSError(str(error)) from error

    def open_input_file(self, path: str) -> pa.PythonFile:
        info = self._info(path)
        if info.type is FileType.NotFound:
            raise FileNotFoundError(path)
        return pa.PythonFile(_Boto3File(self._client, self._bucket, path, info.size), mode="r")

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def normalize_path(self, path: str) -> str:
        return path

    def _read_only(self, *_: Any) -> None:  # noqa: ANN401
        raise NotImplementedError("catalogs are only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _read_only
    delete_file = move = copy_file = open_output_stream = open_append_stream = _read_only
