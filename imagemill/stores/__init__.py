"""Job stores: where the jobs of a run stand, so that a run can be killed and resumed."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from imagemill.errors import InputError
from imagemill.store_address import address_of
from imagemill.stores.base import JobStore, JobTotals, Shard, shards
from imagemill.stores.board import Board, Note
from imagemill.stores.memory import MemoryStore
from imagemill.stores.redis import RedisStore
from imagemill.stores.sql import PostgresStore, SqliteStore

MEMORY_LIMIT = 1_000
"""Up to this many catalog rows the default store is memory; beyond, SQLite."""

__all__ = [
    "MEMORY_LIMIT",
    "Board",
    "JobStore",
    "JobTotals",
    "MemoryStore",
    "Note",
    "PostgresStore",
    "RedisStore",
    "Shard",
    "SqliteStore",
    "open_store",
    "shards",
]


def open_store(
    store: str | None,
    *,
    rows: int,
    run_id: str,
    folder: Path,
    password: SecretStr | None = None,
    join: bool = False,
) -> JobStore:
    """The job store that ``store`` names, for a run of about ``rows`` rows that keeps house in ``folder``.

    ``memory``, ``sqlite`` (a file in the run's folder), ``sqlite:PATH``, ``postgresql://…``,
    ``redis://…``, ``rediss://…``, or None: chosen by size, except that a run goes on with the store it
    began with. ``password`` is that of a server, where the address holds none. With ``join`` the process
    works on a run that another one holds.

    Raises:
        InputError: there is no such store, or it cannot be joined.
    """
    checkpoint, database = folder / "checkpoint.json", folder / "jobs.sqlite"
    if store is None:
        if database.exists():
            store = "sqlite"
        elif checkpoint.exists() or rows <= MEMORY_LIMIT:
            store = "memory"
        else:
            store = "sqlite"
    scheme, _, rest = store.partition(":")
    if scheme in {"postgresql", "postgres"}:
        address = address_of(store, port=5432, options=("sslmode",), password=password)
        return PostgresStore(address, run_id, join=join)
    if scheme in {"redis", "rediss"}:
        address = address_of(store, port=6379, options=("ssl_ca_certs",), password=password)
        return RedisStore(address, run_id, join=join)
    if store != "memory" and scheme != "sqlite":
        known = "memory, sqlite, sqlite:PATH, postgresql://…, redis://… and rediss://…"
        raise InputError(f"There is no job store {scheme!r}: choose one of {known}.")
    if join:
        raise InputError(
            f"The job store {scheme} is of one machine: a run on several needs Postgres or Redis, by"
            " --store postgresql://… or --store redis://…."
        )
    if store == "memory":
        return MemoryStore(checkpoint)
    return SqliteStore(Path(rest.removeprefix("//")).expanduser() if rest else database, run_id)
