"""An S3 server's front door with rules of its own: another region, no conditions, lost answers, TLS."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def is_object_write(self) -> bool:
        return self.method == "PUT" and "x-amz-copy-source" not in self.headers


@dataclass
class Answer:
    """What is answered instead of, or after, what the server says."""

    status: int
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: S3Front

    def _serve(self) -> None:
        asked = Asked(self.command, self.path, self.headers, self._body())
        self.front.asked.append(asked)
        answer = self.front.before(asked)
        if answer is None:
            status, headers, content = self.front.pass_on(asked)
            answer = self.front.after(asked)
            if answer is None:
                self._answer(status, headers, content)
                return
        if isinstance(answer, Exception):
            self.close_connection = True
        else:
            self._answer(answer.status, list(answer.headers.items()), answer.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - names of http.server

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        del self.headers["transfer-encoding"]  # passed on in one piece
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        head = self.command == "HEAD"
        self.send_header("content-length", length if head and length else str(len(content)))
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class S3Front:
    """A proxy before the S3 server on a port of loopback; a context manager.

    ``before`` is asked about each request, and may answer it; ``after`` is asked once the server has done
    what the request says, and may hide what the server said: an :class:`Answer`, or an exception, for which
    the connection is closed. ``prefix`` is a path that all addresses begin with.
    """

    def __init__(self, port: int, *, prefix: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.before: Callable[[Asked], Answer | Exception | None] = lambda _: None
        self.after: Callable[[Asked], Answer | Exception | None] = lambda _: None
        self.strip: tuple[str, ...] = ()
        self._prefix = prefix
        self._port = port
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"front": self}))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://localhost:{self._server.server_port}{prefix}"

    def pass_on(self, asked: Asked) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers: status, headers, body."""
        headers = {n: v for n, v in asked.headers.items() if n.lower() not in self.strip}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(asked.method, asked.path.removeprefix(self._prefix), asked.body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
