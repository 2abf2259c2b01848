"""imagemill from Python: ``from imagemill import generate_catalog``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocks.errors import InputError
    from flows.generate_catalog import generate_catalog
    from tasks.summary import RunStoppedError, RunSummary

__all__ = ["InputError", "RunStoppedError", "RunSummary", "generate_catalog"]

_HOMES = {
    "generate_catalog": "flows.generate_catalog",
    "RunSummary": "tasks.summary",
    "RunStoppedError": "tasks.summary",
    "InputError": "blocks.errors",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name; Prefect is loaded only when asked for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
