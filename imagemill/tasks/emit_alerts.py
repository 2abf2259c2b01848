"""Emits Prefect events for what a dashboard shows for the first time: regressions, and spend."""

from __future__ import annotations

from contextlib import closing

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.access import open_bucket
from imagemill.reports import alert_events
from imagemill.reports.dashboard import DashboardSummary
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.settings import OutputSettings


@task(name="emit-alerts", task_run_name="emit-alerts", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def emit_alerts(output: OutputSettings, summary: DashboardSummary) -> int:
    """Emit an event for each latest run that regressed, and for spend, unless done before; how many."""
    with closing(open_bucket(output)) as bucket:
        return alert_events.emit_alerts(bucket, summary)
