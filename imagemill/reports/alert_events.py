"""Emits Prefect events for regressions and for spend, each once, so that automations can act on them."""

from __future__ import annotations

import math
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import orjson
from prefect.events import emit_event
from pydantic import ValidationError

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.media_types import JSON
from imagemill.prefect_address import lasting_server
from imagemill.reports.dashboard import DashboardSummary
from imagemill.reports.regressions import Regression

REGRESSION = "imagemill.regression"
SPEND = "imagemill.spend"
_LEAST_USD = 0.01
_MEMORY = "dashboard.json"
"""The summary of the dashboard built last: events for what it shows have been emitted."""


def emit_alerts(bucket: ImageBucket, summary: DashboardSummary) -> int:
    """Emit an event for each latest run that regressed, and for spend, unless done before; how many.

    A regression with later runs after it no longer needs action. Without a Prefect server, which has the
    automations, nothing is emitted: it is left for a dashboard that is built with one.
    """
    if lasting_server() is None:
        return 0
    before = _built_before(bucket)
    emitted = {regression.run_id for regression in before.regressions} if before else set()
    new = [each for each in summary.regressions if each.latest and each.run_id not in emitted]
    for regression in new:
        _emit(regression, summary.dashboard, bucket.uri_of(f"runs/{regression.run_id}/report.html"))
    spent = _reached(summary.cost_24h_usd) > _reached(before.cost_24h_usd if before else 0.0)
    if spent:
        _emit_spend(bucket, summary)
    # Last: an event emitted twice is better than one never emitted.
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / _MEMORY
        file.write_text(summary.model_dump_json(indent=2), encoding="utf-8")
        bucket.upload(file, _MEMORY, JSON)
    return len(new) + spent


def _built_before(bucket: ImageBucket) -> DashboardSummary | None:
    try:
        return DashboardSummary.model_validate_json(bucket.read(_MEMORY) or b"")
    except ValidationError:
        return None  # there is none yet, or it is unreadable


def _reached(usd: float) -> float:
    """The amount rounded down to one digit, as in 0.02, 5, 60 or 700: events need few amounts to match."""
    if usd < _LEAST_USD:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(usd) + 1e-9)
    return round(math.floor(usd / unit + 1e-9) * unit, 2)


def _emit_spend(bucket: ImageBucket, summary: DashboardSummary) -> None:
    place = re.sub(r"[^a-z0-9]+", "-", bucket.uri.removeprefix("s3://").lower()).strip("-")
    emit_event(
        event=SPEND,
        resource={
            "prefect.resource.id": f"imagemill.output.{place}",
            "prefect.resource.name": bucket.uri,
            "imagemill.cost-24h-usd": f"{_reached(summary.cost_24h_usd):.7g}",
        },
        occurred=datetime.now(UTC),
        payload={
            "cost_24h_usd": summary.cost_24h_usd,
            "output": bucket.uri,
            "dashboard": summary.dashboard,
        },
    )


def _emit(regression: Regression, dashboard: str, report: str) -> None:
    emit_event(
        event=REGRESSION,
        # The same regression has the same event id, so emitting it twice does no harm.
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
