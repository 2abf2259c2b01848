"""Connections to an API: httpx's client over aiohttp's connections.

httpx's own pool asks the operating system about every idle connection whenever a request begins or ends: at
100 connections, that costs ten times as much as the request itself. aiohttp only looks at those it needs.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import httpx
from yarl import URL

_CONNECT_S = 10.0
_LONGEST_HEADER = 64 * 1024
"""A signed link in a header may be longer than aiohttp's 8 KB."""

_AIOHTTPS_TLS = re.compile(r" ssl:(<[^>]*>|\S+)")
"""Its setting for TLS, which its errors name whether or not the address is one of TLS."""

_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientConnectionError, httpx.ReadError),
    (aiohttp.InvalidURL, httpx.LocalProtocolError),
    (aiohttp.ClientError, httpx.RemoteProtocolError),
    (OSError, httpx.ReadError),
    (ValueError, httpx.LocalProtocolError),
)
"""The first that fits. A request that may have been sent is no connect error: it may be charged."""


def http_client(timeout_s: float, concurrency: int) -> httpx.AsyncClient:
    """A client with a connection for each request in flight and some more.

    ``timeout_s`` limits each wait for bytes. Where the environment names a proxy, all is httpx's own.
    """
    connections = concurrency + 8
    proxied = any(name != "no" for name in urllib.request.getproxies())
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        transport=None if proxied else _Connections(connections),
        trust_env=True,
    )


class _Connections(httpx.AsyncBaseTransport):
    """Sends httpx's requests through aiohttp; what goes wrong is raised as httpx would."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tls = httpx.create_ssl_context()
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._most, ssl=self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_LONGEST_HEADER,
                max_field_size=_LONGEST_HEADER,
            )
        timeout = request.extensions.get("timeout", {})
        with _as_httpx(request):
            answer = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),  # a signed link is asked for as it is written
                headers=request.headers.multi_items(),
                data=request.content or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    connect=timeout.get("pool"),
                    sock_connect=timeout.get("connect"),
                    sock_read=timeout.get("read"),
                ),
            )
        return httpx.Response(answer.status, headers=list(answer.raw_headers), stream=_Body(request, answer))

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Body(httpx.AsyncByteStream):
    """The bytes of an answer, as they arrive."""

    def __init__(self, request: httpx.Request, answer: aiohttp.ClientResponse) -> None:
        self._request = request
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx(self._request):
            async for chunk in self._answer.content.iter_any():
                yield chunk

    async def aclose(self) -> None:
        self._answer.close()  # a connection whose answer was read to its end is free already


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:
        kind = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
        words = _AIOHTTPS_TLS.sub("", str(error))
        raise kind(words or type(error).__name__, request=request) from error
