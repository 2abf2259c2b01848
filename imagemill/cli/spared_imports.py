"""Keeps a command from loading what it never uses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Hidden(MetaPathFinder):
    """Finds no module of this name, though it is installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            raise ModuleNotFoundError(fullname, name=fullname)
        return None


def spare_pandas() -> None:
    """Let pyarrow believe that there is no pandas, for the life of this process.

    pyarrow loads pandas when the first list becomes a column: 50 MB and half a second, for which no command
    has a use. It looks only once. Call this where no code of a user's own will run.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    hidden = _Hidden("pandas")
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(hidden)
