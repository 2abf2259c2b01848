"""Answers: JSON, files, and the ways in which an answer fails to arrive."""

from __future__ import annotations

import asyncio
import binascii
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

__all__ = [
    "BodyTooLargeError",
    "Connections",
    "Cut",
    "Hang",
    "Reset",
    "base64_text",
    "base_url",
    "gateway_page",
    "json_answer",
    "parse_object",
    "read_body",
]

LARGEST_BODY_BYTES = 1_000_000
_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_FLUSH_S = 1.0


class BodyTooLargeError(Exception):
    """A request body is larger than one megabyte."""


class Connections:
    """The open connections of a server, for answers that cut them off."""

    def __init__(self, state: ServerState | None = None) -> None:
        """Look connections up in the state of a running server."""
        self.state = state if state is not None else ServerState()

    def transport(self, scope: Scope) -> asyncio.Transport | None:
        """Return the transport that a request came in on, None when it is closed."""
        client = tuple(scope["client"] or ())
        for protocol in self.state.connections:
            if getattr(protocol, "client", None) == client:
                return protocol.transport
        return None

    def abort_all(self) -> None:
        """Cut every connection off."""
        for protocol in list(self.state.connections):
            if protocol.transport is not None:
                protocol.transport.abort()


class _Broken(Response):
    """An answer that ends with the connection cut off; `outcome` names it in the statistics."""

    outcome = "reset"

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self._connections = connections

    async def _cut(self, scope: Scope, receive: Receive, *, reset: bool) -> None:
        transport = self._connections.transport(scope)
        if transport is None:
            return
        if reset:
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _disconnected(receive)


class Reset(_Broken):
    """No answer: a TCP reset before any byte."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reset the connection."""
        del send
        await self._cut(scope, receive, reset=True)


class Hang(_Broken):
    """No answer until the client leaves or the time is over; then the connection is cut off."""

    outcome = "hang"

    def __init__(
        self,
        connections: Connections,
        pause: Callable[[], Awaitable[bool]],
        done: Callable[[], None] | None = None,
    ) -> None:
        """Hang as long as `pause` takes, and then call `done`."""
        super().__init__(connections)
        self._pause = pause
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, and cut the connection off."""
        del send
        left = asyncio.ensure_future(_disconnected(receive))
        over = asyncio.ensure_future(self._pause())
        try:
            await asyncio.wait({left, over}, return_when=asyncio.FIRST_COMPLETED)
            if not left.done():
                await self._cut(scope, receive, reset=False)
        finally:
            for task in (left, over):
                task.cancel()
            await asyncio.gather(left, over, return_exceptions=True)
            if self._done is not None:
                self._done()


class Cut(_Broken):
    """The headers and half of the body of an answer, and then the end of the connection."""

    def __init__(self, connections: Connections, answer: Response) -> None:
        """Cut this answer off in the middle of its body."""
        super().__init__(connections)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the first half and cut the connection off."""
        answer = self._answer
        await send(
            {
                "type": "http.response.start",
                "status": answer.status_code,
                "headers": answer.raw_headers,
            }
        )
        half = bytes(answer.body)[: len(answer.body) // 2]
        await send({"type": "http.response.body", "body": half, "more_body": True})
        transport = self._connections.transport(scope)
        deadline = asyncio.get_running_loop().time() + _FLUSH_S
        while transport is not None and transport.get_write_buffer_size() > 0:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.001)
        # Without a TCP reset here, since one would discard what the client has not read yet.
        await self._cut(scope, receive, reset=False)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


def gateway_page() -> Response:
    """Return the "html" fault: a page where JSON is expected, with status 200."""
    return HTMLResponse("<!doctype html>\n<title>Welcome</title>\n<h1>Please sign in</h1>\n")


def base64_text(data: bytes) -> bytes:
    """Return data as base64, as ASCII bytes without line ends."""
    return binascii.b2a_base64(data, newline=False)


def base_url(request: Request) -> str:
    """Return the base URL that a request came in on, without a slash at the end."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        address, port = request.scope["server"]
        host = f"{address}:{port}"
    return f"{request.scope['scheme']}://{host}"


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        BodyTooLargeError: The body is larger than a megabyte.
    """
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > LARGEST_BODY_BYTES:
        raise BodyTooLargeError
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > LARGEST_BODY_BYTES:
                raise BodyTooLargeError
            parts.append(part)
    except ClientDisconnect:
        return b""
    return b"".join(parts)


def parse_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a body, None when there is none (or broken Unicode in it)."""
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
