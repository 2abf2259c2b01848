"""An S3 bucket in memory, reached by what boto3 and obstore would be asked for.

Requests and answers take time, get lost or are refused, as the seed decides. A request that was on its way
when its process died may still be carried out.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar

import greenlet
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from obstore.exceptions import GenericError

from tests.simulation.world import EPOCH, World

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its content, media type and metadata, and when it was written, in Unix seconds."""

    content: bytes
    etag: str
    metadata: dict[str, str] = field(default_factory=dict)
    written_at: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreWeather:
    """How likely each request meets trouble, from 0 to 1; latencies in seconds."""

    latency_s: float = 0.01
    refused: float = 0.0
    lost: float = 0.0
    lost_answer: float = 0.0
    away: tuple[tuple[float, float], ...] = ()
    """Virtual seconds from when to when the bucket does not answer."""


class Bucket:
    """The objects, and what watches over them."""

    def __init__(self, world: World, *, conditional: bool = True) -> None:
        self.world = world
        self.conditional = conditional
        self.weather = StoreWeather()
        self.objects: dict[str, Stored] = {}
        self.first_written: dict[str, float] = {}
        """When each object that is there was first written, in virtual seconds."""
        self.written: Callable[[str, bytes], None] = lambda _name, _content: None
        self._rng = random.Random(f"bucket:{world.seed}")

    def put(self, name: str, content: bytes, metadata: dict[str, str] | None = None, **condition: str) -> str:
        """Write an object, whole, if the condition allows it; its ETag."""
        before = self.objects.get(name)
        if self.conditional and condition:
            wanted = condition.get("IfMatch")
            if wanted is not None and before is None:
                raise _client_error("NoSuchKey", 404, "PutObject")
            if (wanted is None and before is not None) or (
                wanted is not None and before is not None and before.etag != wanted
            ):
                raise _client_error("PreconditionFailed", 412, "PutObject")
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        self.first_written.setdefault(name, self.world.loop.now)
        self.objects[name] = Stored(content, etag, metadata or {}, EPOCH + self.world.loop.now)
        self.written(name, content)
        return etag

    def get(self, name: str) -> Stored:
        """An object."""
        try:
            return self.objects[name]
        except KeyError:
            raise _client_error("NoSuchKey", 404, "GetObject") from None

    # The way there and back

    def _is_away(self) -> bool:
        now = self.world.loop.now
        return any(start <= now < end for start, end in self.weather.away)

    def _fate(self) -> str | None:
        """What becomes of the next request."""
        draw = self._rng.random()
        found = "lost" if self._is_away() else None
        for name in ("refused", "lost", "lost_answer"):
            share = getattr(self.weather, name)
            if found is None and 0 <= draw < share:
                found = name
            draw -= share
        if found:
            self.world.met[f"bucket: {found.replace('_', ' ')}"] += 1
        return found

    def _asked(self, action: Callable[[], T]) -> asyncio.Future[T]:
        """Send a request; the future has its answer, which may never come."""
        world, rng, weather = self.world, self._rng, self.weather
        answer: asyncio.Future[T] = world.loop.create_future()
        fate, there, back = self._fate(), rng.expovariate(1), rng.expovariate(1)

        def settle(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def arrive() -> None:
            result: T | None = None
            error: Exception | None = None
            if fate == "refused":
                error = _client_error("SlowDown", 503, "Request")
            else:
                try:
                    result = action()
                except Exception as raised:  # noqa: BLE001 - the answer of the server
                    error = raised
            if fate == "lost_answer":
                error = ReadTimeoutError(endpoint_url="http://s3")
                world.loop.call_later(10.0, settle, None, error)
            else:
                world.loop.call_later(back * weather.latency_s, settle, result, error)

        if fate == "lost":
            world.loop.call_later(10.0, settle, None, EndpointConnectionError(endpoint_url="http://s3"))
        else:
            world.outside_later(there * weather.latency_s, arrive)
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        return answer

    def ask(self, what: str, action: Callable[[], T]) -> T:
        """One blocking request of a client."""
        world = self.world
        if threading.get_ident() != world.thread:
            return action()  # pyarrow reads ahead in a thread of its own
        world.point(f"s3 request: {what}")
        if greenlet.getcurrent() is world.hub:
            raise RuntimeError(f"a blocking request to S3 on the event loop: {what}")
        result = world.wait(self._asked(action))
        world.point(f"s3 answer: {what}")
        return result

    async def ask_async(self, what: str, action: Callable[[], T]) -> T:
        """One request of an asynchronous client."""
        self.world.point(f"s3 request: {what}")
        result = await self._asked(action)
        self.world.point(f"s3 answer: {what}")
        return result


def _client_error(code: str, status: int, operation: str) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": code},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
        },
        operation,
    )


class Client:
    """What the product calls of a boto3 client. It retries what boto3 would retry."""

    def __init__(self, bucket: Bucket, attempts: int) -> None:
        self._bucket = bucket
        self._attempts = attempts

    def _ask(self, what: str, action: Callable[[], T]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return self._bucket.ask(what, action)
            except (ReadTimeoutError, EndpointConnectionError):
                if attempt == self._attempts:
                    raise
            except ClientError as error:
                if error.response["Error"]["Code"] != "SlowDown" or attempt == self._attempts:
                    raise
            self._bucket.world.sleep(0.5 * attempt)
        raise AssertionError

    def _dated(self, more: dict[str, Any]) -> dict[str, Any]:
        now = datetime.fromtimestamp(EPOCH + self._bucket.world.loop.now, UTC)
        return {"ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(now, usegmt=True)}}, **more}

    def head_bucket(self, **_: str) -> dict[str, Any]:
        return self._ask("HeadBucket", lambda: {"BucketRegion": "us-east-1"})

    def get_object(self, Key: str, **_: str) -> dict[str, Any]:  # noqa: N803
        def get() -> dict[str, Any]:
            found = self._bucket.get(Key)
            return self._dated({"Body": _Body(found.content), "ETag": found.etag})

        return self._ask(f"GetObject {Key}", get)

    def head_object(self, Key: str, **_: str) -> dict[str, Any]:  # noqa: N803
        def head() -> dict[str, Any]:
            try:
                found = self._bucket.get(Key)
            except ClientError:
                raise _client_error("404", 404, "HeadObject") from None
            return {"ETag": found.etag, "Metadata": dict(found.metadata), "ContentLength": len(found.content)}

        return self._ask(f"HeadObject {Key}", head)

    def put_object(self, Key: str, Body: Any, **given: str) -> dict[str, Any]:  # noqa: N803
        content = bytes(Body) if isinstance(Body, bytes | bytearray) else Body.read()
        condition = {name: value for name, value in given.items() if name in {"IfMatch", "IfNoneMatch"}}
        return self._ask(
            f"PutObject {Key}", lambda: {"ETag": self._bucket.put(Key, content, None, **condition)}
        )

    def upload_file(self, path: str, bucket: str, key: str, **_: object) -> None:
        del bucket
        content = Path(path).read_bytes()
        self._ask(f"PutObject {key}", lambda: self._bucket.put(key, content))

    def copy_object(self, Key: str, CopySource: dict[str, str], **_: str) -> dict[str, Any]:  # noqa: N803
        def copy() -> dict[str, Any]:
            found = self._bucket.get(CopySource["Key"])
            self._bucket.put(Key, found.content, dict(found.metadata))
            return {}

        return self._ask(f"CopyObject {Key}", copy)

    def delete_objects(self, Delete: dict[str, Any], **_: str) -> dict[str, Any]:  # noqa: N803
        def delete() -> dict[str, Any]:
            for item in Delete["Objects"]:
                self._bucket.objects.pop(item["Key"], None)
                self._bucket.first_written.pop(item["Key"], None)
            return {}

        return self._ask("DeleteObjects", delete)

    def get_paginator(self, _: str) -> Client:
        return self

    def paginate(self, Prefix: str, **_: str) -> Iterator[dict[str, Any]]:  # noqa: N803
        def listed() -> dict[str, Any]:
            names = sorted(name for name in self._bucket.objects if name.startswith(Prefix))
            objects = self._bucket.objects
            return {"Contents": [{"Key": name, "Size": len(objects[name].content)} for name in names]}

        yield self._ask(f"ListObjects {Prefix}", listed)

    def close(self) -> None:
        """Nothing is held."""


class _Body(io.BytesIO):
    def iter_chunks(self, size: int) -> Iterator[bytes]:
        while piece := self.read(size):
            yield piece


class ImageStore:
    """What stands for an obstore store, and the functions of obstore that take it."""

    def __init__(self, bucket: Bucket, retries: int) -> None:
        self.bucket = bucket
        self.attempts = 1 + retries

    def _mended(self, error: Exception) -> Exception:
        return GenericError(f"S3 error: {type(error).__name__}")

    async def put_async(self, key: str, content: bytes, attributes: dict[str, str]) -> dict[str, Any]:
        metadata = {
            name.lower(): value
            for name, value in attributes.items()
            if name not in {"Content-Type", "Cache-Control"}
        }
        for attempt in range(1, min(self.attempts, 4) + 1):
            try:
                etag = await self.bucket.ask_async(
                    f"PutObject {key}", lambda: self.bucket.put(key, content, metadata)
                )
            except (ClientError, ReadTimeoutError, EndpointConnectionError) as error:
                if attempt == min(self.attempts, 4):
                    raise self._mended(error) from None
                await asyncio.sleep(0.2 * 2**attempt)
            else:
                return {"e_tag": etag}
        raise AssertionError

    def blocking(self, what: str, action: Callable[[], T]) -> T:
        for attempt in range(1, min(self.attempts, 4) + 1):
            try:
                return self.bucket.ask(what, action)
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    raise FileNotFoundError(what) from None
                failure: Exception = error
            except (ReadTimeoutError, EndpointConnectionError) as error:
                failure = error
            if attempt == min(self.attempts, 4):
                raise self._mended(failure) from None
            self.bucket.world.sleep(0.2 * 2**attempt)
        raise AssertionError
