"""Job stores: where the jobs of a run stand, so that a run can be killed and resumed."""

from __future__ import annotations

from pathlib import Path

from blocks.errors import InputError
from blocks.stores.base import JobStore, JobTotals, Shard, shards
from blocks.stores.memory import MemoryStore
from blocks.stores.sql import SqlStore

MEMORY_LIMIT = 1_000
"""Up to this many catalog rows the default store is memory; beyond, SQLite."""

__all__ = [
    "MEMORY_LIMIT",
    "JobStore",
    "JobTotals",
    "MemoryStore",
    "Shard",
    "SqlStore",
    "open_store",
    "shards",
]


def open_store(store: str | None, *, rows: int, run_id: str, folder: Path) -> JobStore:
    """The job store that ``store`` names, for a run of about ``rows`` rows that keeps house in ``folder``.

    ``memory``, ``sqlite`` (a file in the run's folder), ``sqlite:PATH``, or None: chosen by size, except
    that a run goes on with the store it began with.

    Raises:
        InputError: there is no such store.
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
    if store == "memory":
        return MemoryStore(checkpoint)
    if store == "sqlite":
        return SqlStore(database, run_id)
    if scheme == "sqlite" and rest:
        return SqlStore(Path(rest.removeprefix("//")).expanduser(), run_id)
    known = "memory, sqlite, sqlite:PATH"
    raise InputError(f"There is no job store {scheme!r}: choose one of {known}.")
