"""The four job stores, and the servers of two of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from blocks.stores import JobStore, open_store
from tests.stores.servers import PASSWORD, PostgresServer, RedisServer, Server

STORES = ["memory", "sqlite", "postgres", "redis"]
Make = Callable[..., JobStore]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def url_of(server: Server, password: str | None = PASSWORD) -> str:
    secret = "" if password is None else ":" + quote(password, safe="")
    if isinstance(server, PostgresServer):
        return f"postgresql://mill{secret}@127.0.0.1:{server.port}/postgres"
    return f"redis://default{secret}@127.0.0.1:{server.port}/0"


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Server | None:
    return None if kind in {"memory", "sqlite"} else request.getfixturevalue(f"{kind}_server")


@pytest.fixture
def url(kind: str, server: Server | None) -> str:
    return url_of(server) if server else kind


@pytest.fixture
def run_id() -> str:
    return f"run-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def make(url: str, run_id: str, tmp_path: Path) -> Make:
    """Makes another store object of the same run: another process's, or this one's after a restart."""

    def of(run: str = run_id, *, join: bool = False) -> JobStore:
        folder = tmp_path / run if url == "memory" else tmp_path
        return open_store(url, rows=10, run_id=run, folder=folder, join=join)

    return of


@pytest.fixture(autouse=True)
def _no_password_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEMILL_STORE_PASSWORD", raising=False)
    monkeypatch.setattr("blocks.stores.address._passwords", {})
    assert "IMAGEMILL_STORE_PASSWORD" not in os.environ
