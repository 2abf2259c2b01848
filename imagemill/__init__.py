"""imagemill from Python: ``from imagemill import generate_catalog``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagemill.errors import InputError
    from imagemill.flows.generate_catalog import generate_catalog
    from imagemill.runs.summary import RunStoppedError, RunSummary

__all__ = ["InputError", "RunStoppedError", "RunSummary", "generate_catalog"]

_HOMES = {
    "generate_catalog": "imagemill.flows.generate_catalog",
    "RunSummary": "imagemill.runs.summary",
    "RunStoppedError": "imagemill.runs.summary",
    "InputError": "imagemill.errors",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name; Prefect is loaded only when asked for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
