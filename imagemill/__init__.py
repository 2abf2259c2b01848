"""imagemill turns a Parquet catalog into images on S3, through any image API.

Public names are loaded on first use, so that ``import imagemill`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagemill.catalog.estimate import Estimate, estimate
    from imagemill.engine.calibration import Calibration
    from imagemill.errors import InputError, StoreUnavailableError
    from imagemill.flows.build_dashboard import build_dashboard
    from imagemill.flows.calibrate import calibrate
    from imagemill.flows.generate_catalog import generate_catalog
    from imagemill.flows.preview_catalog import preview_catalog
    from imagemill.flows.refresh_catalog import refresh_catalog
    from imagemill.flows.retry_failed import retry_failed
    from imagemill.quality.judge import Candidate
    from imagemill.reports.dashboard import DashboardSummary
    from imagemill.reports.preview import Preview
    from imagemill.runs.frames import runs
    from imagemill.runs.summary import RunStoppedError, RunSummary
    from imagemill.settings import (
        ApiSettings,
        Budget,
        CatalogSettings,
        ExecutionSettings,
        LimitSettings,
        OutputSettings,
        PictureSettings,
        QualitySettings,
        RefreshSettings,
        RegressionSettings,
    )

__all__ = [
    "ApiSettings",
    "Budget",
    "Calibration",
    "Candidate",
    "CatalogSettings",
    "DashboardSummary",
    "Estimate",
    "ExecutionSettings",
    "InputError",
    "LimitSettings",
    "OutputSettings",
    "PictureSettings",
    "Preview",
    "QualitySettings",
    "RefreshSettings",
    "RegressionSettings",
    "RunStoppedError",
    "RunSummary",
    "StoreUnavailableError",
    "build_dashboard",
    "calibrate",
    "estimate",
    "generate_catalog",
    "preview_catalog",
    "refresh_catalog",
    "retry_failed",
    "runs",
]

_MODULES = {
    "catalog.estimate": ("Estimate", "estimate"),
    "engine.calibration": ("Calibration",),
    "errors": ("InputError", "StoreUnavailableError"),
    "flows.build_dashboard": ("build_dashboard",),
    "flows.calibrate": ("calibrate",),
    "flows.generate_catalog": ("generate_catalog",),
    "flows.preview_catalog": ("preview_catalog",),
    "flows.refresh_catalog": ("refresh_catalog",),
    "flows.retry_failed": ("retry_failed",),
    "quality.judge": ("Candidate",),
    "reports.dashboard": ("DashboardSummary",),
    "reports.preview": ("Preview",),
    "runs.frames": ("runs",),
    "runs.summary": ("RunStoppedError", "RunSummary"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"imagemill.{_HOMES.get(name, 'settings')}"), name)
    return found
