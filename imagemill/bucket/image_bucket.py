"""The bucket that images and records go to.

boto3 does everything but one thing: the images themselves, the only hot path, go through obstore, which
costs a fifth of boto3's CPU an object (``benchmarks/`` has the figures). Both use boto3's credentials.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import boto3
import obstore
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import S3Store

from imagemill.errors import InputError, StoreUnavailableError

if TYPE_CHECKING:
    from botocore.client import BaseClient

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
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc:
            raise InputError(f"The output {uri!r} is not of the form s3://BUCKET/PREFIX.")
        if endpoint_url and urlsplit(endpoint_url).scheme not in {"http", "https"}:
            raise InputError(f"The S3 endpoint {endpoint_url!r} is not an http or https address.")
        self.name = parts.netloc
        self.prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self.uri = f"s3://{self.name}/{self.prefix}".rstrip("/")
        self._session = session or boto3.Session()
        self.endpoint_url = endpoint_url or self._configured_endpoint()
        try:
            credentials = self._session.get_credentials()
        except BotoCoreError as error:
            raise InputError(f"S3 credentials cannot be read: {error}") from error
        if credentials is None:
            raise InputError(
                "There are no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a"
                " profile in AWS_PROFILE, or give the name of an S3Bucket block."
            )
        self._client = self._connect(attempts=6)
        self._images = self._image_store()

    def _configured_endpoint(self) -> str | None:
        """An S3 server that boto3's own configuration names (AWS_ENDPOINT_URL), for obstore to use too."""
        client = self._session.client("s3", region_name=self._region)
        endpoint: str = client.meta.endpoint_url
        client.close()
        host = urlsplit(endpoint).hostname or ""
        return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else endpoint

    @property
    def _region(self) -> str:
        return self._session.region_name or "us-east-1"

    def _image_store(self) -> S3Store:
        options: dict[str, Any] = {"endpoint": self.endpoint_url} if self.endpoint_url else {}
        return S3Store(
            self.name,
            region=self._region,
            virtual_hosted_style_request=self.endpoint_url is None,
            credential_provider=Boto3CredentialProvider(self._session, ttl=timedelta(minutes=5)),
            client_options={
                "allow_http": (self.endpoint_url or "").startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=30),
            },
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            **options,
        )

    def _connect(self, attempts: int) -> BaseClient:
        return self._session.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self._region,
            config=Config(
                retries={"max_attempts": attempts, "mode": "standard"},
                connect_timeout=5,
                read_timeout=30,
                max_pool_connections=32,
                signature_version="s3v4",  # links that last a week
                s3={"addressing_style": "path"} if self.endpoint_url else {},
            ),
        )

    def check(self) -> None:
        """See that the bucket is there and lets us in.

        Raises:
            InputError: it is not, or does not; says which.
        """
        where = f" at {self.endpoint_url}" if self.endpoint_url else ""
        client = self._connect(attempts=2)  # a person waits for the answer
        try:
            client.head_bucket(Bucket=self.name)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 404:
                reason = "does not exist: create it, or correct the name"
            elif status in {400, 401, 403}:
                reason = "refused these credentials: check the access key, its rights and the region"
            else:
                reason = f"answered with HTTP {status}: try again later"
            raise InputError(f"The bucket {self.name!r}{where} {reason}.") from error
        except NoCredentialsError as error:
            raise InputError("There are no S3 credentials.") from error
        except BotoCoreError as error:
            raise InputError(
                f"The bucket {self.name!r}{where} cannot be reached ({type(error).__name__}): check the"
                " endpoint and the network."
            ) from error
        finally:
            client.close()

    def uri_of(self, name: str) -> str:
        """The s3:// address of an object below the prefix."""
        return f"s3://{self.name}/{self.prefix}{name}"

    def link(self, name: str, seconds: int) -> str:
        """An address at which anybody who has it may read an object for so many seconds, a week at most."""
        link: str = self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self.name, "Key": self.prefix + name}, ExpiresIn=seconds
        )
        return link

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
        try:
            await obstore.put_async(
                self._images,
                self.prefix + name,
                content,
                attributes=attributes,
                use_multipart=False,
            )
        except (ObstoreError, OSError) as error:
            raise StoreUnavailableError(
                f"The bucket {self.name!r} did not take an image ({_first_line(error)})."
            ) from error

    def images(self, keys: Iterable[str]) -> dict[str, StoredImage]:
        """Which of these keys have their image in the bucket already."""
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
        images = {}
        for image in found:
            key = image.name.rpartition("/")[2].partition(".")[0]
            if key in wanted and image.size:
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

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is no such object."""
        found = self.read_version(name)
        return found and found[0]

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """An object's content and its ETag; None where there is no such object."""
        try:
            with _outages_named(self.name):
                answer = self._client.get_object(Bucket=self.name, Key=self.prefix + name)
                return answer["Body"].read(), answer["ETag"]
        except FileNotFoundError:
            return None

    def download(self, name: str, path: Path) -> str | None:
        """Write an object's content into a file, piece by piece; its ETag, None where it is not there."""
        try:
            with _outages_named(self.name):
                answer = self._client.get_object(Bucket=self.name, Key=self.prefix + name)
        except FileNotFoundError:
            return None
        with _outages_named(self.name), path.open("wb") as file:
            file.writelines(answer["Body"].iter_chunks(_PIECE))
        etag: str = answer["ETag"]
        return etag

    def replace(self, path: Path, name: str, media_type: str, etag: str | None) -> str:
        """Write a file as one object if it is still the one of ``etag`` (None: not there yet); the new ETag.

        Raises:
            ConflictError: somebody else wrote it in the meantime.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with _outages_named(self.name), path.open("rb") as content:
            answer = self._client.put_object(
                Bucket=self.name,
                Key=self.prefix + name,
                Body=content,
                ContentType=media_type,
                **condition,
            )
            etag_now: str = answer["ETag"]
        return etag_now

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, a thousand a request."""
        for start in range(0, len(names), 1000):
            objects = [{"Key": self.prefix + name} for name in names[start : start + 1000]]
            with _outages_named(self.name):
                self._client.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the bucket, on the server."""
        with _outages_named(self.name):
            self._client.copy_object(
                Bucket=self.name,
                Key=self.prefix + target,
                CopySource={"Bucket": self.name, "Key": self.prefix + source},
            )

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()


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
        if isinstance(error, BotoCoreError):
            raise StoreUnavailableError(
                f"The bucket {self._bucket!r} did not answer ({type(error).__name__})."
            ) from error


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


def image_name(key: str, extension: str) -> str:
    """The name of a key's image, below the output prefix."""
    return f"{image_folder(key)}/{key}.{extension}"


def copy_name(row_id: str, extension: str) -> str:
    """The name of a row's own copy: the id cannot leave its folder, and no two ids share a name."""
    safe = quote(row_id, safe=" ()+,=@!")
    if safe.strip(". ") == "":
        safe = safe.replace(".", "%2E").replace(" ", "%20")
    if len(safe) > _LONGEST_NAME:
        digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        safe = f"{safe[: _LONGEST_NAME - 25]}~{digest}"
    return f"catalog/{safe}.{extension}"


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200]
