"""An HTTP proxy before an S3 server that answers uploads of images with faults, as a busy S3 does.

Requests pass through byte for byte, but for the ``Connection`` header, which is in no signature: each
connection carries one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from typing import Self

_ERRORS = {
    "SlowDown": (503, "Slow Down", "Please reduce your request rate."),
    "InternalError": (500, "Internal Server Error", "We encountered an internal error. Please try again."),
}
FAULTS = (*_ERRORS, "hang", "reset")
_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)


class S3FaultProxy:
    """Passes on to ``127.0.0.1:port``; ``inject`` names the fault of the next uploads. A context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._fault = ""
        self._left = 0
        self.injected = 0

    def inject(self, fault: str, times: int) -> None:
        """Let the next ``times`` uploads of an image meet a fault."""
        assert fault in FAULTS
        self._fault, self._left = fault, times

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._ended = asyncio.Event()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._answer, sock=self._listener)
        await self._ended.wait()
        server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for each in open_ones:
            each.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _answer(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        # Cancelled only at the end, when asyncio would complain of each connection that still hangs.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await client.readuntil(b"\r\n\r\n")
            if self._left and re.match(rb"PUT /\S*/images/", head):
                self._left -= 1
                self.injected += 1
                await self._fail(self._fault, back)
            else:
                await self._pass_on(head, client, back)
        back.close()

    async def _fail(self, fault: str, back: asyncio.StreamWriter) -> None:
        if fault == "hang":
            await asyncio.sleep(3600)
        elif fault == "reset":
            raw = back.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            back.transport.abort()
        else:
            status, reason, message = _ERRORS[fault]
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                f"<Error><Code>{fault}</Code><Message>{message}</Message></Error>"
            )
            back.write(
                f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
            await back.drain()

    async def _pass_on(self, head: bytes, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answer, server = await asyncio.open_connection("127.0.0.1", self._target)
        head = _CONNECTION.sub(b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        server.write(head)
        sending = asyncio.create_task(_pump(client, server))
        try:
            await _pump(answer, back)
        finally:
            sending.cancel()
            server.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
