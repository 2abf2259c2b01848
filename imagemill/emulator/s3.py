"""An S3 server in memory, on loopback: `python -m imagemill.emulator.s3`. It checks no signatures.

It knows what a run does with its bucket: write, copy, read, list and delete objects, with conditions.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import socket
import sys
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape, unescape

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HOST = "127.0.0.1"
_KEPT = ("content-type", "cache-control", "content-encoding", "content-disposition")
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    headers: dict[str, str]
    etag: str = field(init=False)
    modified: str = field(default_factory=lambda: formatdate(usegmt=True))

    def __post_init__(self) -> None:
        digest = hashlib.md5(self.content, usedforsecurity=False).hexdigest()  # as S3 does
        object.__setattr__(self, "etag", f'"{digest}"')


class S3:
    """Buckets by name, and their objects by key; ``app`` serves them."""

    def __init__(self, *buckets: str) -> None:
        self._buckets: dict[str, dict[str, _Object]] = {name: {} for name in buckets}
        self.app = Starlette(
            routes=[
                Route("/{bucket}", self._bucket, methods=["HEAD", "GET", "PUT", "POST"]),
                Route("/{bucket}/", self._bucket, methods=["HEAD", "GET", "PUT", "POST"]),
                Route("/{bucket}/{key:path}", self._object, methods=["HEAD", "GET", "PUT", "POST", "DELETE"]),
            ]
        )

    async def _bucket(self, request: Request) -> Response:
        name, query = request.path_params["bucket"], request.query_params
        if request.method == "PUT":
            self._buckets.setdefault(name, {})
            return Response()
        objects = self._buckets.get(name)
        if objects is None:
            return _error(404, "NoSuchBucket")
        if request.method == "HEAD":
            return Response()
        if request.method == "POST" and "delete" in query:
            for key in re.findall(r"<Key>(.*?)</Key>", (await request.body()).decode(), re.DOTALL):
                objects.pop(unescape(key, {"&quot;": '"', "&apos;": "'"}), None)
            return _xml("DeleteResult", "")
        if request.method == "GET" and query.get("list-type") == "2":
            return _listing(name, objects, request)
        return _error(501, "NotImplemented")

    async def _object(self, request: Request) -> Response:
        objects, key = self._buckets.get(request.path_params["bucket"]), request.path_params["key"]
        if objects is None:
            return _error(404, "NoSuchBucket")
        found = objects.get(key)
        if request.method == "PUT" and not request.query_params:
            return await self._put(request, objects, key)
        if request.method == "DELETE":
            objects.pop(key, None)
            return Response(status_code=204)
        if request.method in {"HEAD", "GET"}:
            return _error(404, "NoSuchKey") if found is None else _answer(request, found)
        return _error(501, "NotImplemented")  # uploads in several parts

    async def _put(self, request: Request, objects: dict[str, _Object], key: str) -> Response:
        given, content = request.headers, await request.body()
        headers = {k: v for k, v in given.items() if k in _KEPT or k.startswith("x-amz-meta-")}
        if source := given.get("x-amz-copy-source"):
            bucket, _, source_key = unquote(source).lstrip("/").partition("/")
            copied = self._buckets.get(bucket, {}).get(source_key)
            if copied is None:
                return _error(404, "NoSuchKey")
            replaced = given.get("x-amz-metadata-directive") == "REPLACE"
            objects[key] = _Object(copied.content, headers if replaced else copied.headers)
            return _xml("CopyObjectResult", f"<ETag>{escape(objects[key].etag)}</ETag>")
        if "x-amz-decoded-content-length" in given:
            content = _unchunked(content)
            headers.pop("content-encoding", None)
        found = objects.get(key)  # only now: another request may have written while the body came
        wanted = given.get("if-match")
        if wanted is not None and found is None:
            return _error(404, "NoSuchKey")
        if found is not None and (given.get("if-none-match") == "*" or wanted not in {None, found.etag}):
            return _error(412, "PreconditionFailed")
        objects[key] = _Object(content, headers)
        return Response(headers={"etag": objects[key].etag})


def _answer(request: Request, found: _Object) -> Response:
    headers = {**found.headers, "etag": found.etag, "last-modified": found.modified, "accept-ranges": "bytes"}
    size, content, status = len(found.content), found.content, 200
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked and any(asked.groups()):
        first, last = asked.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= size:
            return _error(416, "InvalidRange")
        content, status = content[start:end], 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        return Response(headers={**headers, "content-length": str(len(content))}, status_code=status)
    return Response(content, headers=headers, status_code=status)


def _listing(bucket: str, objects: dict[str, _Object], request: Request) -> Response:
    query = request.query_params
    prefix, most = query.get("prefix", ""), min(_PAGE, int(query.get("max-keys", _PAGE)))
    after = unquote(query.get("continuation-token", "")) or query.get("start-after", "")
    keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
    is_encoded = query.get("encoding-type") == "url"
    page = keys[:most]
    text = f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
    text += "<EncodingType>url</EncodingType>" * is_encoded
    text += f"<IsTruncated>{str(len(keys) > most).lower()}</IsTruncated>"
    if len(keys) > most:
        text += f"<NextContinuationToken>{quote(page[-1])}</NextContinuationToken>"
    for key in page:
        shown, found = quote(key) if is_encoded else escape(key), objects[key]
        text += (
            f"<Contents><Key>{shown}</Key><Size>{len(found.content)}</Size><ETag>{escape(found.etag)}</ETag>"
            f"<LastModified>{_iso(found.modified)}</LastModified></Contents>"
        )
    return _xml("ListBucketResult", text)


def _iso(modified: str) -> str:
    return parsedate_to_datetime(modified).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _unchunked(content: bytes) -> bytes:
    """The object in a body of ``aws-chunked`` encoding, whose trailers are left out."""
    parts, at = list[bytes](), 0
    while size := int(content[at : (end := content.index(b"\r\n", at))].partition(b";")[0], 16):
        parts.append(content[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


def _xml(name: str, text: str, status: int = 200) -> Response:
    document = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{text}</{name}>'
    return Response(document, status_code=status, media_type="application/xml")


def _error(status: int, code: str) -> Response:
    return _xml("Error", f"<Code>{code}</Code><Message>{code}</Message>", status)


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the address is the first word printed."""
    parser = argparse.ArgumentParser(prog="python -m imagemill.emulator.s3", description=__doc__)
    parser.add_argument("--port", type=int, default=8333, help="port, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--bucket", action="append", default=[], metavar="NAME", help="a bucket to begin with; repeatable"
    )
    given = parser.parse_args(arguments)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, given.port))
    except OSError as error:
        parser.error(f"port {given.port} cannot be used: {error.strerror}")
    listener.listen(128)
    address = f"http://{_HOST}:{listener.getsockname()[1]}"
    sys.stdout.write(f"{address} is an S3 server; what it holds ends with it. It takes any credentials.\n")
    sys.stdout.flush()
    config = uvicorn.Config(S3(*given.bucket).app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
