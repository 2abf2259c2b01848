"""Everything from a catalog or an API is hostile, and no secret is ever told."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.sorting import LogSort
from pydantic import SecretStr

from imagemill.blocks.apis import Fal, Together, exchange
from imagemill.bucket.image_bucket import copy_name
from imagemill.catalog.files import open_catalog
from imagemill.emulator import Emulator
from imagemill.errors import ApiError, InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.jobs import Job
from imagemill.settings import CatalogSettings
from tests.cli.test_command import arguments
from tests.conftest import Place
from tests.patience import PATIENCE_S
from tests.servers import PASSWORD

API_KEY = "sk-very-secret-5f1c9e"


@pytest.mark.parametrize(
    "row_id",
    [
        *("../../etc/passwd", "/absolute", "..", ".", "...", " ", "a/b", "C:\\con", "%2e%2e"),
        *("nul\x00", "\x1b[2J", "é" * 500, "x" * 2000),
    ],
)
def test_an_id_cannot_leave_its_folder(row_id: str) -> None:
    name = copy_name(row_id, "png")
    folder, _, file = name.partition("/")
    assert folder == "catalog"
    assert "/" not in file
    assert "\\" not in file
    assert name.isascii()
    assert name.isprintable()
    assert file.removesuffix(".png").strip(". ") != ""
    assert len(name.encode()) <= 240


def test_long_ids_that_begin_alike_are_not_one_file() -> None:
    assert copy_name("x" * 1000 + "1", "png") != copy_name("x" * 1000 + "2", "png")


def test_column_names_cannot_move_the_cursor(catalog: Callable[..., str]) -> None:
    path = catalog(**{"\x1b[2Jcaption": ["x"]})
    with pytest.raises(InputError) as caught:
        open_catalog(CatalogSettings(path=path))
    assert str(caught.value).isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgres", "redis"])
def test_no_secret_in_any_log_record_or_report(
    store: str,
    store_url: Callable[[str], str],
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    own_home: Path,
) -> None:
    emulated = emulator(latency_s=0.01)
    path = catalog(prompt=["good", "bad #fault:400", "odd #fault:html", "gone #fault:reset"])
    process = start_command(
        "run", path, *arguments(place, emulated), "--store", store_url(store),
        TOGETHER_API_KEY=API_KEY, PREFECT_LOGGING_LEVEL="DEBUG",
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="DEBUG",
        PREFECT_LOGGING_EXTRA_LOGGERS="httpx,httpcore,boto3,botocore,sqlalchemy,asyncpg,aiosqlite,redis",
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    assert "DEBUG" in err

    secrets = [API_KEY, place.s3.environment["AWS_SECRET_ACCESS_KEY"], PASSWORD, quote(PASSWORD, safe="")]
    told = {"stdout": out.encode(), "stderr": err.encode()}
    told |= {name: place.read(name) for name in place.objects()}
    told |= {str(file): file.read_bytes() for file in own_home.rglob("*") if file.is_file()}
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(), limit=200, sort=LogSort.TIMESTAMP_DESC)
        told["prefect logs"] = "\n".join(log.message for log in logs).encode()
        for run in client.read_flow_runs(limit=5):
            told[f"flow run {run.id}"] = run.model_dump_json().encode()
    assert len(told) > 10
    for where, content in told.items():
        for secret in secrets:
            assert secret.encode() not in content, where


class Echo(BaseHTTPRequestHandler):
    """Tells in its errors what it was sent, in one more spelling each time."""

    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        key = str(self.headers["authorization"])
        spellings = [
            key,
            quote(key, safe=""),
            json.dumps({"detail": key}),
            f"{key[:20]}\n  {key[20:]}",
            repr(key),
        ]
        Echo.asked += 1
        body = spellings[Echo.asked % len(spellings)].encode()
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-request-id", key)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_an_api_that_repeats_the_key_does_not_spread_it(
    place: Place,
    catalog: Callable[..., str],
    own_home: Path,
    prefect_server: str,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = "sk-live-0a1b/2c3d+4e5f6a7b8c9d"
    monkeypatch.setenv("TOGETHER_API_KEY", f"{key}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        summary = generate_catalog(
            catalog=catalog(prompt=[f"p{n}" for n in range(6)]),
            api={"provider": "together", "base_url": f"http://127.0.0.1:{server.server_port}"},
            output=place.settings(),
            picture={"width": 256, "height": 256},
        )
        server.shutdown()
    assert (summary.failed, summary.unanswered) == (6, 0)
    told = {name: place.read(name) for name in place.objects()}
    told |= {str(file): file.read_bytes() for file in own_home.rglob("*") if file.is_file()}
    failed = place.table(f"runs/{summary.run_id}/failed.parquet")
    assert all("***" in row["error_message"] for row in failed)
    told |= {row["id"]: row["error_message"].encode() for row in failed}
    with get_client(sync_client=True) as client:
        told["logs"] = "\n".join(log.message for log in client.read_logs(LogFilter(), limit=200)).encode()
        told["artifacts"] = repr([a.data for a in client.read_artifacts(limit=50)]).encode()
    for where, content in told.items():
        for spelling in (key, quote(key, safe=""), key[:18]):
            assert spelling.encode() not in content, where


class Hostile(BaseHTTPRequestHandler):
    """Answers that no vendor would give."""

    asked: list[str] = []  # noqa: RUF012 - one server a test

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.rfile.read(length)
        self.asked.append(self.path)
        if self.path.startswith("/endless"):
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"url": "http://127.0.0.1:%d/redirect"}]}' % self.server.server_port)  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/inside")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[ThreadingHTTPServer]:
    Hostile.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(api: Together | Fal) -> ApiError:
    job = Job(0, "a", "k", "p", None, 64, 64, 1, 4, api.model, "png")

    async def accepted(_: str, _charged_usd: float | None = None) -> None:
        pass

    async def generate() -> ApiError:
        async with httpx.AsyncClient() as http:
            with pytest.raises(ApiError) as caught:
                await api.generate(http, job, accepted)
            return caught.value

    return anyio.run(generate)


def test_a_body_that_never_ends_is_left(
    hostile: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MAX_ANSWER_BYTES", 3_000_000)
    url = f"http://127.0.0.1:{hostile.server_port}/endless"
    error = ask(Together(api_key=SecretStr("k"), base_url=url))
    assert error.code == "answer_too_large"


def test_a_redirect_to_a_foreign_host_is_not_followed(hostile: ThreadingHTTPServer) -> None:
    error = ask(Together(api_key=SecretStr("k"), base_url=f"http://127.0.0.1:{hostile.server_port}"))
    assert error.code == "image_link"
    assert "169.254.169.254" in error.message


def test_a_link_to_a_foreign_host_is_never_asked_for() -> None:
    api = Together(api_key=SecretStr("k"))

    async def download() -> None:
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as http:
            await api.download(http, "http://169.254.169.254/latest/meta-data/iam")

    with pytest.raises(ApiError) as caught:
        anyio.run(download)
    assert caught.value.code == "image_host_refused"
