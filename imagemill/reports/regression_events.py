"""Emits a Prefect event for each regression, once, so that an automation can act on it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import orjson
from prefect.events import emit_event

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.media_types import JSON
from imagemill.reports.dashboard import DashboardSummary
from imagemill.reports.regressions import Regression

EVENT = "imagemill.regression"
_MEMORY = "dashboard.json"
"""The summary of the dashboard built last: events for what it shows have been emitted."""


def emit_new_regressions(bucket: ImageBucket, summary: DashboardSummary) -> int:
    """Emit an event for each latest run that regressed, unless an earlier dashboard did; how many.

    A regression that is followed by later runs needs no action any more.
    """
    emitted = _emitted_before(bucket)
    new = [each for each in summary.regressions if each.latest and each.run_id not in emitted]
    for regression in new:
        _emit(regression, summary.dashboard, bucket.uri_of(f"runs/{regression.run_id}/report.html"))
    # Last: an event that is emitted twice is better than one that never was.
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / _MEMORY
        file.write_text(summary.model_dump_json(indent=2), encoding="utf-8")
        bucket.upload(file, _MEMORY, JSON)
    return len(new)


def _emitted_before(bucket: ImageBucket) -> set[str]:
    try:
        before = DashboardSummary.model_validate_json(bucket.read(_MEMORY) or b"")
    except ValueError:
        return set()  # there is none yet, or it is unreadable
    return {regression.run_id for regression in before.regressions}


def _emit(regression: Regression, dashboard: str, report: str) -> None:
    emit_event(
        event=EVENT,
        # The same regression is the same event, should it be emitted twice.
        id=uuid5(NAMESPACE_URL, report),
        resource={
            "prefect.resource.id": regression.resource_id,
            "prefect.resource.name": f"{regression.catalog} on {regression.provider}",
            "imagemill.catalog": regression.catalog,
            "imagemill.provider": regression.provider,
        },
        payload={
            **orjson.loads(regression.model_dump_json()),
            "in_words": regression.in_words,
            "report": report,
            "dashboard": dashboard,
        },
    )
