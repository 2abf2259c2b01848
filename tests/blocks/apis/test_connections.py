"""The connections to an API: what fails is named as httpx names it, which decides what may be charged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from imagemill.blocks.apis.connections import http_client

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.LocalProtocolError)

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nimage"

ANSWERS = {
    "closed without an answer": b"",
    "no HTTP": b"\x00\x01\x02 garbage\r\n\r\n",
    "headers cut short": b"HTTP/1.1 200 OK\r\ncontent-le",
    "body cut short": b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nimage",
    "chunk cut short": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\nimage",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nimage\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nimage",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nimage",
}


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives these bytes to each request and closes; None: it never answers. Its requests."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            requests.append(await reader.read(2**16))
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        closed.set()

    closed = asyncio.Event()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", requests
    finally:
        listening.close()
        if requests:
            await closed.wait()
            await asyncio.sleep(0)


async def error_with(http: httpx.AsyncClient, url: str, **more: object) -> Exception:
    async with http:
        with pytest.raises(httpx.HTTPError) as raised:
            await http.post(url, content=b"a prompt", **more)  # type: ignore[arg-type]
    return raised.value


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_broken_answer_may_be_charged(answer: bytes) -> None:
    async def main() -> None:
        async with server(answer) as (url, requests):
            error = await error_with(http_client(5.0, 10), url)
            assert isinstance(error, httpx.TransportError), error
            assert not isinstance(error, NOT_SENT), error
            assert str(error)
            assert len(requests) == 1
            assert isinstance(await error_with(httpx.AsyncClient(), url), type(error).__mro__[1])

    asyncio.run(main())


def test_a_request_that_cannot_leave_is_told_from_one_without_an_answer() -> None:
    async def main() -> None:
        async with server(WHOLE) as (url, requests):
            pass
        error = await error_with(http_client(5.0, 10), url)
        assert isinstance(error, httpx.ConnectError)
        host = url.removeprefix("http://")
        assert str(error).startswith(f"Cannot connect to host {host} [")  # aiohttp says ssl: of any
        assert isinstance(await error_with(http_client(5.0, 10), "http://host.invalid"), httpx.ConnectError)
        async with server(WHOLE) as (url, requests):
            error = await error_with(http_client(5.0, 10), url, headers={"x-name": "a\r\nx-other: b"})
            assert isinstance(error, httpx.LocalProtocolError)
            assert requests == []
            assert isinstance(await error_with(http_client(5.0, 10), url.replace("http", "https")), NOT_SENT)
        async with server(None) as (url, requests):
            error = await error_with(http_client(0.1, 10), url)
            assert isinstance(error, httpx.ReadTimeout)
            assert len(requests) == 1

    asyncio.run(main())


def test_a_link_is_asked_for_as_it_is_written_and_long_headers_are_read() -> None:
    link = "/a%2Fb%7E+c?sig=a%2Bb%3D%3d&se=2026-11-26T12%3A00%3A00Z&empty="
    answer = WHOLE.replace(b"\r\n\r\n", b"\r\nlocation: https://x/" + b"a" * 20_000 + b"\r\n\r\n")

    async def main() -> None:
        async with server(answer) as (url, requests), http_client(5.0, 10) as http:
            response = await http.get(url + link, headers={"accept-encoding": "identity"})
            assert response.content == b"image"
            assert len(response.headers["location"]) > 20_000
            sent = requests[0].decode().lower()
        async with server(answer) as (url, requests), httpx.AsyncClient() as http:
            await http.get(url + link)
            theirs = requests[0].decode()
        assert sent.splitlines()[0] == theirs.lower().splitlines()[0] == f"get {link.lower()} http/1.1"
        assert sent.count("accept-encoding") == sent.count("user-agent") == sent.count("host:") == 1

    asyncio.run(main())


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with server(WHOLE) as (proxy, requests):
            monkeypatch.setenv("HTTP_PROXY", proxy)
            async with http_client(5.0, 10) as http:
                assert (await http.get("http://api.example/path")).content == b"image"
            assert requests[0].startswith(b"GET http://api.example/path ")

    asyncio.run(main())
