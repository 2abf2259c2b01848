"""Real parts for the tests: one Prefect server and one S3 server a session, an emulated API a test."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    get_current_settings,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from imagemill.cli.command import main
from imagemill.emulator import Emulator, Settings
from tests.prefect_database import keep, lay_out
from tests.s3_server import S3Server, s3_server
from tests.servers import PostgresServer, RedisServer, redis_program, url_of

BUCKET = "tests"
_prefixes = itertools.count()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server; its API's address."""
    folder = tmp_path_factory.mktemp("prefect-server")
    database = folder / "prefect-test.db"
    lay_out(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(folder), raising=False)
        harness = prefect_test_harness(server_startup_timeout=180)
        # Every flow run would wait a second at its end for its heartbeat.
        with (
            temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False}),
            harness,
            temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        ):
            keep(database)
            yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    if redis_program() is None:
        pytest.skip("there is no redis-server on this machine, and no wheel of it for this Python")
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """What ``--store`` takes for a kind of store, its server started."""

    def of(kind: str) -> str:
        return url_of(request.getfixturevalue(f"{kind}_server")) if kind in {"postgres", "redis"} else kind

    return of


@dataclass
class Place:
    """A prefix of its own in the test bucket."""

    s3: S3Server
    uri: str

    @property
    def prefix(self) -> str:
        return self.uri.removeprefix(f"s3://{BUCKET}/") + "/"

    def objects(self) -> dict[str, int]:
        client = self.s3.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=self.prefix)
        found = {
            item["Key"].removeprefix(self.prefix): item["Size"]
            for page in pages
            for item in page.get("Contents", [])
        }
        client.close()
        return found

    def read(self, name: str) -> bytes:
        client = self.s3.client()
        body: bytes = client.get_object(Bucket=BUCKET, Key=self.prefix + name)["Body"].read()
        client.close()
        return body

    def head(self, name: str) -> dict[str, Any]:
        client = self.s3.client()
        found: dict[str, Any] = client.head_object(Bucket=BUCKET, Key=self.prefix + name)
        client.close()
        return found

    def delete(self, name: str) -> None:
        client = self.s3.client()
        client.delete_object(Bucket=BUCKET, Key=self.prefix + name)
        client.close()

    def table(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(self.read(name))).to_pylist()
        return rows

    def settings(self, **more: object) -> dict[str, Any]:
        return {"uri": self.uri, "s3_endpoint_url": self.s3.endpoint_url, **more}


@pytest.fixture
def place(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Somewhere in the bucket that only this test writes to, with credentials in the environment."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return Place(s3, f"s3://{BUCKET}/p{next(_prefixes)}")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs keep their folders in the test's own folder; keys are the test's own."""
    home = tmp_path / "home"
    monkeypatch.setenv("IMAGEMILL_HOME", str(home))
    monkeypatch.setenv("TOGETHER_API_KEY", "test-key-together")
    monkeypatch.setenv("FAL_KEY", "test-key-fal")
    return home


def full_disk(*_: object) -> NoReturn:
    """In place of a write: the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def make_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, no file in the test's own folder can be written, renamed or removed."""

    def refused(function: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Path, *given: Any, **named: Any) -> Any:
            reads = function.__name__ == "open" and (*given, named.get("mode", "r"))[0] in {"r", "rb"}
            if tmp_path in path.parents and not reads:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return function(path, *given, **named)

        return refuse

    def make() -> None:
        for name in ("open", "unlink", "rename", "replace", "touch"):
            monkeypatch.setattr(Path, name, refused(getattr(Path, name)))

    return make


@pytest.fixture
def emulator() -> Iterator[Callable[..., Emulator]]:
    """Starts emulated APIs: ``emulator(max_concurrent=20)``; quick and small unless said otherwise."""
    running: list[Emulator] = []

    def start(**settings: Any) -> Emulator:
        made = Emulator(Settings(**{"latency_s": 0.0, "pictures": "fast", **settings}))
        made.start()
        running.append(made)
        return made

    yield start
    for each in running:
        each.stop()


@pytest.fixture
def catalog(tmp_path: Path) -> Callable[..., str]:
    """Writes a catalog of columns; its path."""

    def write(name: str = "catalog.parquet", **columns: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        return str(path)

    return write


CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for the modules that are marked ``needs_chromium``."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield made
        made.close()


@dataclass
class Command:
    """A finished ``imagemill`` process."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture
def start_command(prefect_server: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``imagemill`` as a process of its own, with the test's environment."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "imagemill", *arguments],
            env={**os.environ, "PREFECT_API_URL": prefect_server, **environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def command(
    prefect_server: str,  # noqa: ARG001 - it is configured already
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Command]:
    """Runs ``imagemill`` to its end in this process: to load Prefect anew takes seconds each time."""

    def run(*arguments: str, **environment: str) -> Command:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            try:
                code = main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
        return Command(code, *capfd.readouterr())

    return run
