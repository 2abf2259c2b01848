"""Prefect's API refuses requests, as Prefect Cloud does beyond its rate and SQLite while it is locked."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from tests.conftest import Place


@contextmanager
def refusing(server: str, every: int) -> Iterator[tuple[str, list[int]]]:
    """A server before ``server`` that refuses every so many requests; its address, and what it refused."""
    target = urlsplit(server)
    refused: list[int] = []
    asked = itertools.count(1)
    client = httpx.Client(timeout=60)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            if self.headers.get("upgrade"):
                self._pass_through()
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if (number := next(asked)) % every == 0:
                refused.append(429 if number % (2 * every) else 503)
                self.send_response(refused[-1])
                self.send_header("retry-after", "0")
                self.end_headers()
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            address = f"{target.scheme}://{target.netloc}{self.path}"
            answer = client.request(self.command, address, content=body, headers=headers)
            self.send_response(answer.status_code)
            for name in {"content-type", "location"} & set(answer.headers):
                self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def _pass_through(self) -> None:
            """A websocket: bytes both ways."""
            assert target.hostname
            with socket.create_connection((target.hostname, target.port or 80)) as behind:
                behind.sendall(f"{self.raw_requestline.decode()}{self.headers}".encode())
                back = threading.Thread(target=copy, args=(behind, self.connection), daemon=True)
                back.start()
                copy(self.connection, behind)
                back.join()

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}{target.path}", refused
    finally:
        listening.shutdown()
        listening.server_close()
        client.close()


def copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
def test_a_run_waits_for_what_is_refused_and_shows_everything(
    prefect_server: str, place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    with (
        refusing(prefect_server, every=3) as (address, refused),
        temporary_settings({PREFECT_API_URL: address}),
    ):
        state = generate_catalog(
            catalog=catalog(prompt=["a", "b"]),
            api={"provider": "together", "base_url": emulator().base_url},
            output=place.settings(),
            picture={"width": 256, "height": 256},
            return_state=True,
        )
        EventsWorker.drain_all()  # one that began here would send all later tests' events to this address
    assert {429, 503} <= set(refused)
    wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        stored = client.read_flow_run(state.state_details.flow_run_id).state
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
    assert stored is not None
    assert stored.is_completed()
    assert {artifact.key for artifact in artifacts if artifact.key} == {
        "imagemill-progress", "imagemill-headline", "imagemill-metrics", "imagemill-report",
    }  # fmt: skip
