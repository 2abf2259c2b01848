"""The four job stores, as they are opened for a run of a test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from imagemill.stores import JobStore, open_store
from tests.servers import Server, url_of

STORES = ["memory", "sqlite", "postgres", "redis"]
Make = Callable[..., JobStore]


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
    assert "IMAGEMILL_STORE_PASSWORD" not in os.environ
