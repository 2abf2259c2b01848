"""Measures a run: its metrics, its summary and its report."""

from __future__ import annotations

from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest_diff import Changes
from imagemill.catalog.counts import PlanCounts
from imagemill.reports.assets import METRICS, NAMED_BY_RUN, RECORDS, describe
from imagemill.reports.measurement import publish_measurements
from imagemill.runs.session import Session
from imagemill.runs.summary import RunSummary
from imagemill.runs.user_errors import without_secrets_in_errors

_IN_EVENTS = {
    "run_id", "rows", "rejected", "unique", "done", "failed", "pending", "generated", "reused", "suspect",
    "images_per_minute", "error_rate", "p95_latency_s", "cost_usd", "manifest", "metrics", "report",
}  # fmt: skip


@materialize(
    NAMED_BY_RUN,
    by="imagemill",
    name="measure",
    task_run_name="measure",
    cache_policy=NO_CACHE,
    persist_result=False,
)
@without_secrets_in_errors
def measure(session: Session, counts: PlanCounts, changes: Changes) -> RunSummary:
    """Write metrics, report and the run's row to the bucket; the summary.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """
    summary = publish_measurements(session, counts, changes)
    numbers = summary.model_dump(include=_IN_EVENTS)
    for asset in (METRICS, RECORDS):
        describe(session.bucket.uri, asset, message=str(summary), **numbers)
    return summary
