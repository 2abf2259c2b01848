"""The bucket that images and records go to.

boto3 does everything but one thing: the images themselves, the only hot path, go through obstore, which
costs a fifth of boto3's CPU per object (``benchmarks/`` has the figures). Both are set up in one place,
:mod:`imagemill.s3.connection`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote

import boto3
import obstore
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError as ObstoreError
from urllib3.exceptions import HTTPError

from imagemill.durable import written_whole
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.formatting import cut
from imagemill.media_types import JSON
from imagemill.s3.connection import S3Connection
from imagemill.s3.filesystem import S3File
from imagemill.s3.uri import split_s3_uri
from imagemill.takes import is_rejected, take_name, take_of

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from obstore.store import S3Store

_LONGEST_NAME = 200
_SMALL = TransferConfig(multipart_threshold=64 * 2**20)
_PIECE = 2**20
_PAGE = 1_000
"""So many objects come with one answer to a listing."""

_LOOKUPS_A_PAGE = 16
"""To look for so many single keys costs about as much as a whole page of a listing."""

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""Media types by the extension of an image."""


class ConflictError(Exception):
    """Somebody else wrote the object in the meantime."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image, or another object: its name below the output prefix, and its size in bytes."""

    name: str
    size: int


class ImageBucket:
    """A bucket and a prefix in it. Methods block, but for :meth:`put_image`.

    ``conditional`` says whether the bucket knows conditional writes, which
    :func:`imagemill.bucket.probe.probe` finds out.

    Args:
        uri: ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``.
        endpoint_url: the S3 server, where it is not AWS; else the one that boto3's configuration names.
        session: where the credentials come from; boto3's own search by default.

    Raises:
        InputError: the URI is none, or there are no credentials.
    """

    def __init__(
        self, uri: str, *, endpoint_url: str | None = None, session: boto3.Session | None = None
    ) -> None:
        try:
            self.name, prefix = split_s3_uri(uri)
        except ValueError as error:
            raise InputError(f"The output {error}.") from error
        self.prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{self.name}/{self.prefix}".rstrip("/")
        self.connection = S3Connection(self.name, endpoint_url=endpoint_url, session=session)
        self.conditional = True
        self._connect()

    def _connect(self) -> None:
        self._client = self.connection.client()
        self._quick = self.connection.client(attempts=2, read_timeout_s=10)
        self._images = self.connection.store()

    @property
    def endpoint_url(self) -> str | None:
        """The S3 server, where it is not AWS."""
        return self.connection.endpoint_url

    @property
    def region(self) -> str:
        """The region of the bucket, as far as it has been asked."""
        return self.connection.region

    def check(self) -> None:
        """See that the bucket is there and lets us in, and go on in the region where it is.

        Raises:
            InputError: it is not, or does not; says which.
        """
        region = self.region
        self.connection.locate(self._quick, self.prefix)  # a person waits for the answer
        if self.region != region:
            self.close()
            self._connect()

    def uri_of(self, name: str) -> str:
        """The s3:// address of an object below the prefix."""
        return f"s3://{self.name}/{self.prefix}{name}"

    def link(self, name: str, seconds: int) -> str:
        """An address at which anybody who has it may read an object for so many seconds, a week at most."""
        link: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self.name, "Key": self.prefix + name}, ExpiresIn=seconds
        )
        return link

    async def put_rejection(self, name: str, run_id: str) -> None:
        """Write the object that says that a take was rejected: no later run uses that picture.

        Raises:
            StoreUnavailableError: the bucket refused or did not answer, after all retries.
        """
        await self._put(name, orjson.dumps({"rejected_by": run_id}), {"Content-Type": JSON})

    async def put_image(self, name: str, content: bytes, metadata: dict[str, str]) -> None:
        """Write one image, with its media type and metadata (ASCII). Writing it again changes nothing.

        Raises:
            StoreUnavailableError: the bucket refused or did not answer, after all retries.
        """
        attributes = {
            "Content-Type": MEDIA_TYPES[name.rpartition(".")[2]],
            "Cache-Control": "public, max-age=31536000, immutable",
            **metadata,
        }
        await self._put(name, content, attributes)

    async def _put(self, name: str, content: bytes, attributes: dict[str, str]) -> None:
        try:
            await obstore.put_async(
                self._images,
                self.prefix + name,
                content,
                attributes=attributes,
                use_multipart=False,
            )
        except (ObstoreError, BotoCoreError, OSError) as error:
            raise StoreUnavailableError(
                f"The bucket {self.name!r} did not take an image ({first_line(error)})."
            ) from error

    def images(self, keys: Iterable[str]) -> dict[str, StoredImage]:
        """Which of these keys have their image in the bucket already: the last take of each.

        If that take was rejected, it is the object that says so.
        """
        first_page = list(self._list("images/", pages=1))
        if not first_page:
            return {}
        wanted = set(keys)
        if len(first_page) < _PAGE:
            found = first_page
        else:
            prefixes = [f"images/{digit}" for digit in "0123456789abcdef"]
            if len(wanted) <= _LOOKUPS_A_PAGE * _objects_after(first_page) / _PAGE:
                prefixes = [f"{image_folder(key)}/{key}." for key in wanted]
            with ThreadPoolExecutor(16) as threads:
                found = [o for page in threads.map(lambda p: list(self._list(p)), prefixes) for o in page]
        images: dict[str, StoredImage] = {}
        for image in found:
            key = image.name.rpartition("/")[2].partition(".")[0]
            if key in wanted and image.size and (key not in images or _age(image) > _age(images[key])):
                images[key] = image
        return images

    def objects(self, folder: str) -> list[StoredImage]:
        """The objects of a folder below the prefix, and of the folders in it."""
        return list(self._list(folder.rstrip("/") + "/"))

    def _list(self, prefix: str, pages: int | None = None) -> Iterator[StoredImage]:
        paginator = self._client.get_paginator("list_objects_v2")
        start = len(self.prefix)
        with _outages_named(self.name):
            for number, page in enumerate(
                paginator.paginate(Bucket=self.name, Prefix=self.prefix + prefix), start=1
            ):
                for item in page.get("Contents", []):
                    yield StoredImage(item["Key"][start:], item["Size"])
                if number == pages:
                    return

    def metadata(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The metadata of these objects, by name: a request each. Names of none are left out."""

        def of(name: str) -> tuple[str, dict[str, str]] | None:
            try:
                with _outages_named(self.name):
                    answer = self._client.head_object(Bucket=self.name, Key=self.prefix + name)
            except FileNotFoundError:
                return None
            return name, answer["Metadata"]

        with ThreadPoolExecutor(16) as threads:
            return dict(filter(None, threads.map(of, names)))

    def upload(self, path: Path, name: str, media_type: str) -> str:
        """Write a file as one object, replacing what was there at once; its address."""
        with _outages_named(self.name):
            self._client.upload_file(
                str(path),
                self.name,
                self.prefix + name,
                ExtraArgs={"ContentType": media_type},
                Config=_SMALL,
            )
        return self.uri_of(name)

    def write(self, name: str, content: bytes, media_type: str) -> None:
        """Write a few bytes as one object, replacing what was there; answers, or gives up, within seconds."""
        with _outages_named(self.name):
            self._quick.put_object(
                Bucket=self.name, Key=self.prefix + name, Body=content, ContentType=media_type
            )

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is no such object."""
        found = self.read_version(name)
        return found and found[0]

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """An object's content and its ETag; None where there is no such object."""
        found = self.read_dated(name)
        return found and found[:2]

    def read_dated(self, name: str) -> tuple[bytes, str, float | None] | None:
        """An object's content, its ETag, and what time the server has, in Unix seconds; None: no object."""
        try:
            with _outages_named(self.name):
                answer = self._quick.get_object(Bucket=self.name, Key=self.prefix + name)
                date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
                try:
                    now: float | None = parsedate_to_datetime(date).timestamp()
                except ValueError:
                    now = None
                return answer["Body"].read(), answer["ETag"], now
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile | None]:
        """An object to read here and there; None where there is no such object.

        Raises:
            StoreUnavailableError: the bucket did not answer; also from each read of the file.
        """
        key = self.prefix + name
        try:
            size = obstore.head(self._images, key)["size"]
        except FileNotFoundError:
            yield None
            return
        except (ObstoreError, OSError) as error:
            raise _no_answer(self.name, error) from error
        with pa.PythonFile(_Object(self._images, self.name, key, size), mode="r") as file:
            yield file

    def download(self, name: str, path: Path) -> str | None:
        """Write an object's content into a file, piece by piece; its ETag, None where it is not there."""
        try:
            with _outages_named(self.name):
                answer = self._client.get_object(Bucket=self.name, Key=self.prefix + name)
        except FileNotFoundError:
            return None
        with _outages_named(self.name), written_whole(path) as file:
            file.writelines(answer["Body"].iter_chunks(_PIECE))
        etag: str = answer["ETag"]
        return etag

    def replace(self, path: Path, name: str, media_type: str, etag: str | None) -> str:
        """Write a file as one object if it is still the one of ``etag`` (None: not there yet); the new ETag.

        Where the bucket knows no conditional writes, the condition is looked at just before the write.

        Raises:
            ConflictError: somebody else wrote it in the meantime.
        """
        with path.open("rb") as content:
            return self._replace(self._client, name, content, media_type, etag)

    def write_version(self, name: str, content: bytes, media_type: str, etag: str | None) -> str:
        """The same for a few bytes that are in memory; answers, or gives up, within half a minute."""
        return self._replace(self._quick, name, content, media_type, etag)

    def _replace(
        self, client: BaseClient, name: str, content: bytes | BinaryIO, media_type: str, etag: str | None
    ) -> str:
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        if not self.conditional:
            if self.etag(name) != etag:
                raise ConflictError
            condition = {}
        try:
            with _outages_named(self.name):
                answer = client.put_object(
                    Bucket=self.name,
                    Key=self.prefix + name,
                    Body=content,
                    ContentType=media_type,
                    **condition,
                )
        except FileNotFoundError as error:  # there is no object of this ETag, nor any other
            raise ConflictError from error
        etag_now: str = answer["ETag"]
        return etag_now

    def etag(self, name: str) -> str | None:
        """The ETag of an object; None where there is no such object."""
        try:
            with _outages_named(self.name):
                etag: str = self._quick.head_object(Bucket=self.name, Key=self.prefix + name)["ETag"]
        except FileNotFoundError:
            return None
        return etag

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, a thousand with each request. Those that are gone already are no fault.

        Raises:
            StoreUnavailableError: some could not be deleted; says how many and why. All others are.
        """
        if refused := self.try_delete(names):
            name, code = next(iter(refused.items()))
            raise StoreUnavailableError(
                f"The bucket {self.name!r} did not delete {len(refused):,} of {len(names):,} objects"
                f" ({code} for {self.prefix + name!r})."
            )

    def try_delete(self, names: Sequence[str]) -> dict[str, str]:
        """The same, but the objects that the bucket refused to delete are returned, with its error codes."""
        refused: dict[str, str] = {}
        for start in range(0, len(names), _PAGE):
            objects = [{"Key": self.prefix + name} for name in names[start : start + _PAGE]]
            with _outages_named(self.name):
                answer = self._client.delete_objects(
                    Bucket=self.name, Delete={"Objects": objects, "Quiet": True}
                )
            refused |= {
                str(error.get("Key")).removeprefix(self.prefix): str(error.get("Code"))
                for error in answer.get("Errors", [])
                if error.get("Code") != "NoSuchKey"
            }
        return refused

    def copy(self, source: str, target: str) -> None:
        """Copy an image within the bucket, on the server. Unlike images, a copy may be replaced by another.

        Raises:
            StoreUnavailableError: the bucket did not; or what is to be copied is gone.
        """
        try:
            with _outages_named(self.name):
                self._client.copy_object(
                    Bucket=self.name,
                    Key=self.prefix + target,
                    CopySource={"Bucket": self.name, "Key": self.prefix + source},
                    MetadataDirective="REPLACE",
                    ContentType=MEDIA_TYPES.get(target.rpartition(".")[2], "application/octet-stream"),
                    CacheControl="no-cache",
                )
        except FileNotFoundError as error:
            raise StoreUnavailableError(f"{self.uri_of(source)} is gone: somebody deleted it.") from error

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()
        self._quick.close()


class _outages_named:  # noqa: N801 - reads as the context it is
    """Turns boto3's errors into the project's own."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ClientError):
            code = error.response.get("Error", {}).get("Code")
            if code in {"NoSuchKey", "404"}:
                raise FileNotFoundError(str(error)) from error
            if code in {"PreconditionFailed", "ConditionalRequestConflict", "412"}:
                raise ConflictError from error
            raise StoreUnavailableError(f"The bucket {self._bucket!r} answered {code}.") from error
        if isinstance(error, Boto3Error):  # an upload of a file; the answer to it is what it came from
            raise StoreUnavailableError(
                f"The bucket {self._bucket!r} did not take a file ({first_line(error)})."
            ) from error
        if isinstance(error, BotoCoreError | HTTPError):
            raise StoreUnavailableError(
                f"The bucket {self._bucket!r} did not answer ({type(error).__name__})."
            ) from error


def _age(image: StoredImage) -> tuple[int, bool]:
    """A sort key for the takes of a picture: the later, and the one that was rejected, is larger."""
    return take_of(image.name), is_rejected(image.name)


class _Object(S3File):
    """An object that is read here and there; a bucket that does not answer is no damaged file."""

    def __init__(self, store: S3Store, bucket: str, key: str, size: int) -> None:
        super().__init__(store, key, size)
        self._bucket = bucket

    def _range(self, length: int) -> object:
        try:
            return super()._range(length)
        except OSError as error:
            raise _no_answer(self._bucket, error) from error


def _no_answer(bucket: str, error: Exception) -> StoreUnavailableError:
    return StoreUnavailableError(f"The bucket {bucket!r} did not answer ({first_line(error)}).")


def _objects_after(first_page: Sequence[StoredImage]) -> float:
    """About how many images there are: keys are digests, so the first page's share of them tells."""
    last = first_page[-1].name.rpartition("/")[2][:8]
    try:
        return len(first_page) * 16.0 ** len(last) / (int(last, 16) + 1)
    except ValueError:  # an object that somebody else put there
        return float(len(first_page))


def image_folder(key: str) -> str:
    """The folder of a key's image: 256 of them, so that a listing can be split."""
    return f"images/{key[:2]}"


def image_name(key: str, extension: str, take: int = 1) -> str:
    """The name of a key's image, below the output prefix."""
    return f"{image_folder(key)}/{key}{take_name(take)}.{extension}"


def image_names(keys: pa.ChunkedArray, suffixes: pa.ChunkedArray) -> pa.ChunkedArray:
    """The names of many images, as :func:`image_name` has them; ``suffixes`` follow the keys, or are null."""
    folders = pc.utf8_slice_codeunits(keys, 0, 2)
    return pc.binary_join_element_wise("images/", folders, "/", keys, suffixes, "", null_handling="emit_null")


def copy_name(row_id: str, extension: str, variant: int = 1) -> str:
    """The name of a row's own copy: the id cannot leave its folder, and no two rows or variants share one."""
    safe = quote(row_id, safe=" ()+,=@!")
    if safe.strip(". ") == "":
        safe = safe.replace(".", "%2E").replace(" ", "%20")
    if len(safe) > _LONGEST_NAME:
        digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        safe = f"{safe[: _LONGEST_NAME - 25]}~{digest}"
    # A folder has no extension, so that no first variant has its name, whatever the ids are.
    folder = "catalog" if variant == 1 else f"catalog/variant-{variant}"
    return f"{folder}/{safe}.{extension}"


def first_line(error: Exception) -> str:
    """What an error says, bounded, on one line; of obstore, which says where and when first, the cause."""
    said, _, details = str(error).partition("\n\nDebug source:")
    said = re.sub(r"^.*?Error performing [A-Z]+ \S+ in .*? - ", "", said, flags=re.DOTALL)
    cause = re.search(r'\b(?:message|error): "([^"]+)"', details)
    return cut(f"{said}: {cause[1]}" if cause else said, 200)
