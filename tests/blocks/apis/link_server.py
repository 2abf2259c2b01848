"""A synchronous API that bills each image and answers with a link; the test says what links answer."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

SIDE = 512
Answer = tuple[int, dict[str, str], bytes]


def picture() -> bytes:
    """A picture that passes all checks."""
    content = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(content, "PNG")
    return content.getvalue()


class LinkServer:
    """Counts what it bills, and how often each link was asked; ``answer`` gets how often this one was."""

    def __init__(self, answer: Callable[[int], Answer | None]) -> None:
        self.answer = answer
        self.billed = 0
        self.asked: dict[str, int] = {}
        self.lock = threading.Lock()
        self.base_url = ""


@contextmanager
def link_server(answer: Callable[[int], Answer | None]) -> Iterator[LinkServer]:
    """A running server; ``answer`` says what a link answers the first time (0), the second (1) and so on.

    None cuts the connection off.
    """
    made = LinkServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            with made.lock:
                made.billed += 1
                link = f"{made.base_url}/files/{made.billed}"
            self.send({"data": [{"url": link}]})

        def do_GET(self) -> None:
            with made.lock:
                before = made.asked.get(self.path, 0)
                made.asked[self.path] = before + 1
            answered = made.answer(before)
            if answered is None:
                self.close_connection = True
                return
            status, headers, content = answered
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send(self, document: object) -> None:
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.base_url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()
