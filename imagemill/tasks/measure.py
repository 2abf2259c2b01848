"""Measures a run: its metrics, its summary and its report."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest_diff import Changes
from imagemill.catalog.counts import PlanCounts
from imagemill.reports.measurement import publish_measurements
from imagemill.runs.session import Session
from imagemill.runs.summary import RunSummary
from imagemill.runs.user_errors import without_secrets_in_errors


@task(name="measure", task_run_name="measure", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def measure(session: Session, counts: PlanCounts, changes: Changes) -> RunSummary:
    """Write metrics, report and the run's row to the bucket; the summary.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """
    return publish_measurements(session, counts, changes)
