"""The database of a new Prefect server, kept for each version of Prefect: to migrate it takes ten seconds."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

CACHE = Path(os.environ.get("IMAGEMILL_TEST_CACHE") or Path.home() / ".cache" / "imagemill-tests")
"""What the tests keep from one run to the next."""

_KEPT = CACHE / f"prefect-{version('prefect')}.db"


def lay_out(database: Path) -> None:
    """Put the database of a new server there, if one is kept; else the server makes it."""
    database.parent.mkdir(parents=True, exist_ok=True)
    if _KEPT.exists():
        shutil.copyfile(_KEPT, database)


def keep(database: Path) -> None:
    """Keep the database of a server that has just started, and has seen no run yet."""
    if _KEPT.exists() or not database.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        copy = Path(folder) / "copy.db"
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        copy.replace(_KEPT)
