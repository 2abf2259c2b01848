"""One HTTP exchange with an API, and what its answers say. All that an API sends is bounded here."""

from __future__ import annotations

import binascii
import ipaddress
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin

import httpx
import orjson
import pybase64

from imagemill.blocks.apis.error_codes import UNKNOWN_ANSWER
from imagemill.errors import NOT_TAKEN, ApiError, ErrorClass, printable

MAX_ANSWER_BYTES = 96 * 1024 * 1024
"""No answer and no image may be larger; a 2048 x 2048 PNG is at most some 16 MB."""

MAX_EVENT_BYTES = 256 * 1024
"""No line of a stream of events may be longer."""

MAX_LINK_LENGTH = 8_000
"""No image link that is kept may be longer; signed ones have some hundred characters."""

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

_LARGEST_AMOUNT = 1e12
"""Larger counts of tokens or sums of money are not believed."""

NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.LocalProtocolError,
    httpx.UnsupportedProtocol,
)
"""No connection, or no request that may be sent: nothing can have been charged."""


def not_taken(error: ApiError) -> bool:
    """Whether the API has refused the request, or never got it, and may take the same one later."""
    return error.error_class in NOT_TAKEN or isinstance(error.__cause__, NEVER_SENT)


async def fetch(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    json: object = None,
    most_bytes: int = MAX_ANSWER_BYTES,
) -> tuple[int, httpx.Headers, bytes]:
    """One HTTP exchange, its body bounded: status, headers, body. Redirects are not followed."""
    content = None
    sent = {"accept-encoding": "identity", **(headers or {})}
    if json is not None:
        content = orjson.dumps(json)
        sent["content-type"] = "application/json"
    async with http.stream(method, url, headers=sent, content=content, follow_redirects=False) as answer:
        chunks: list[bytes] = []
        held = 0
        async for chunk in answer.aiter_bytes():
            chunks.append(chunk)
            held += len(chunk)
            if held > most_bytes:
                raise ApiError(
                    ErrorClass.INVALID_IMAGE,
                    f"the answer is larger than {most_bytes / 2**20:g} MB",
                    code="answer_too_large",
                    charged=True,
                )
        return answer.status_code, answer.headers, b"".join(chunks)


async def follow(
    http: httpx.AsyncClient, url: str, *, headers: Mapping[str, str], until: Callable[[bytes], bool]
) -> tuple[int, bool]:
    """Read server-sent events until the data of one is what is waited for.

    Returns the HTTP status, and whether the event came; False also where the stream ends before, or is no
    stream of events. What is held of it is bounded.
    """
    sent = {"accept": "text/event-stream", **headers}
    async with http.stream("GET", url, headers=sent, follow_redirects=False) as answer:
        if answer.status_code != 200:
            return answer.status_code, False
        held, came = b"", False
        async for chunk in answer.aiter_bytes():
            if came:
                continue  # to the end, so that the connection can be used again
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > MAX_EVENT_BYTES:
                return 200, False
            came = any(line.startswith(b"data:") and until(line[5:].strip()) for line in lines)
        return 200, came


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of an answer that should be one.

    Raises:
        ApiError: it is something else, such as a proxy's HTML page with status 200.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise unexpected_answer(body)
    return document


def unexpected_answer(answer: object) -> ApiError:
    """The error for an answer of another shape than the vendor documents."""
    raw = answer[:80].decode("utf-8", "replace") if isinstance(answer, bytes) else repr(answer)[:80]
    words = f"an answer of an unknown shape: {printable(raw)}" if raw else "an empty answer"
    return ApiError(ErrorClass.SERVER_ERROR, words, code=UNKNOWN_ANSWER)


def text_at(answer: object, *path: str | int) -> str | None:
    """The text at a path in an answer, such as ``"data", 0, "url"``; None where there is none."""
    for step in path:
        if isinstance(step, str) and isinstance(answer, dict):
            answer = answer.get(step)
        elif isinstance(step, int) and isinstance(answer, list) and len(answer) > step:
            answer = answer[step]
        else:
            return None
    return answer if isinstance(answer, str) else None


def objects_at(answer: object, name: str) -> list[dict[str, Any]]:
    """The objects of a list in an answer; whatever else is in it, or there instead, is left out."""
    found = answer.get(name) if isinstance(answer, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def amount_of(value: object) -> float | None:
    """A number that an API sent, also as text; None if it is not one, or is negative or absurdly large."""
    try:
        amount = float(value)  # type: ignore[arg-type] # whatever cannot be converted is refused below
    except (TypeError, ValueError, OverflowError):
        return None
    return amount if 0 <= amount <= _LARGEST_AMOUNT and not isinstance(value, bool) else None


def is_link(text: str) -> bool:
    """Whether an answer's image is a link, absolute or relative, and neither a data URI nor base64."""
    if text.startswith(("http://", "https://")):
        return True
    if text.startswith("data:"):
        return False
    # A JPEG in base64 begins with /9j/. No link is long, and base64 has none of the other characters.
    return len(text) <= MAX_LINK_LENGTH and (
        (text.startswith("/") and not text.startswith("/9j/")) or any(mark in text for mark in ".:?%")
    )


def joined(base: str, link: str) -> str:
    """A link, absolute or relative to ``base``; as it is where it is no link at all."""
    try:
        return urljoin(base, link)
    except ValueError:
        return link


def decoded(encoded: str) -> bytes:
    """The bytes of an image in base64, standard or URL-safe, padded or not, or of a data URI.

    Raises:
        ApiError: it is not valid base64.
    """
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    with suppress(binascii.Error, ValueError):
        return pybase64.b64decode(encoded, validate=True)  # standard and padded, as most of it is
    try:
        text = encoded.encode("ascii").translate(_STANDARD_ALPHABET, delete=b" \t\r\n").rstrip(b"=")
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise ApiError(
            ErrorClass.INVALID_IMAGE, "the image is not valid base64", code="bad_base64", charged=True
        ) from None


def words_of(body: bytes) -> str:
    """The sentence in an error body, whichever of the vendors' shapes it has."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:300].decode("utf-8", "replace").strip()
    found = document
    if isinstance(document, dict):
        found = next(filter(None, map(document.get, ("error", "detail", "message", "errors"))), document)
    if isinstance(found, dict):
        found = found.get("message") or found
    if isinstance(found, list):
        found = "; ".join(_words_of_item(item) if isinstance(item, dict) else str(item) for item in found[:5])
    return found if isinstance(found, str) else orjson.dumps(found).decode()[:300]


def _words_of_item(item: dict[str, Any]) -> str:
    """One error of a list: FastAPI's ``{loc, msg}``, or ``{code, message}``."""
    if "message" in item:
        return str(item["message"])
    return f"{_place(item.get('loc'))}: {item.get('msg', '')}"


def _place(loc: object) -> str:
    return ".".join(map(str, loc[:10])) if isinstance(loc, list) else str(loc)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
