"""Emits a Prefect event for each new regression."""

from __future__ import annotations

from contextlib import closing

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.access import open_bucket
from imagemill.reports.dashboard import DashboardSummary
from imagemill.reports.regression_events import emit_new_regressions
from imagemill.settings import OutputSettings


@task(name="emit-regressions", task_run_name="emit-regressions", cache_policy=NO_CACHE, persist_result=False)
def emit_regressions(output: OutputSettings, summary: DashboardSummary) -> int:
    """Emit an event for each latest run that regressed, unless an earlier dashboard did; how many."""
    with closing(open_bucket(output)) as bucket:
        return emit_new_regressions(bucket, summary)
