"""Job stores: the state of a run's jobs, so that a run can be killed and resumed."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from imagemill.errors import InputError
from imagemill.store_address import address_of
from imagemill.stores.base import JobStore, JobTotals, Shard, shards
from imagemill.stores.board import Board, Note
from imagemill.stores.memory import MemoryStore

MEMORY_LIMIT = 1_000
"""The default store is memory up to this many pictures, and SQLite for more."""

__all__ = [
    "MEMORY_LIMIT",
    "Board",
    "JobStore",
    "JobTotals",
    "MemoryStore",
    "Note",
    "Shard",
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
    """Open the job store that ``store`` names, for a run whose folder is ``folder``.

    ``rows`` is about how many pictures the run makes.
    ``memory``, ``sqlite`` (a file in the run's folder), ``sqlite:PATH``, ``postgresql://…``,
    ``redis://…``, ``rediss://…``, or None: the store that the run began with, else chosen by size.
    ``password`` is the server's, if the address has none. With ``join`` the process works on a run whose
    lease another process holds.

    Raises:
        InputError: there is no such store, or it cannot be joined.
    """
    # What a store needs is only loaded for that store: SQLAlchemy takes half as long as Prefect.
    checkpoint, database, log = (folder / name for name in ("checkpoint.json", "jobs.sqlite", "log.jsonl"))
    if store is None:
        if database.exists():
            store = "sqlite"
        elif checkpoint.exists() or rows <= MEMORY_LIMIT:
            store = "memory"
        else:
            store = "sqlite"
    scheme, _, rest = store.partition(":")
    if scheme in {"postgresql", "postgres"}:
        from imagemill.stores.sql import PostgresStore  # noqa: PLC0415

        address = address_of(store, port=5432, options=("sslmode",), password=password)
        return PostgresStore(address, run_id, join=join)
    if scheme in {"redis", "rediss"}:
        from imagemill.stores.redis import RedisStore  # noqa: PLC0415

        address = address_of(store, port=6379, options=("ssl_ca_certs",), password=password)
        return RedisStore(address, run_id, join=join)
    if store != "memory" and scheme != "sqlite":
        known = "memory, sqlite, sqlite:PATH, postgresql://…, redis://… and rediss://…"
        raise InputError(f"There is no job store {scheme!r}. Choose one of {known}.")
    if join:
        raise InputError(
            f"The job store {scheme} works on one machine only. A run on several needs Postgres or Redis:"
            " --store postgresql://… or --store redis://…."
        )
    if store == "memory":
        return MemoryStore(checkpoint, log)
    from imagemill.stores.sql import SqliteStore  # noqa: PLC0415

    return SqliteStore(Path(rest.removeprefix("//")).expanduser() if rest else database, run_id, log)
