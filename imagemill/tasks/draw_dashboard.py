"""Draws the dashboard of all runs below an output prefix."""

from __future__ import annotations

from contextlib import closing

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.access import open_bucket
from imagemill.reports.artifacts import link_to
from imagemill.reports.dashboard import DashboardSummary, publish_dashboard
from imagemill.runs.history import History
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.settings import OutputSettings, RegressionSettings


@task(name="draw-dashboard", task_run_name="draw-dashboard", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def draw_dashboard(
    output: OutputSettings, history: History, regressions: RegressionSettings
) -> DashboardSummary:
    """Write dashboard.html below the output prefix; what it shows. Its link is an artifact."""
    with closing(open_bucket(output)) as bucket:
        summary = publish_dashboard(bucket, history, regressions)
        create_markdown_artifact(
            link_to(bucket, "dashboard.html", "Open the dashboard"),
            key="imagemill-dashboard",
            description=f"The dashboard is at {summary.dashboard}.",
        )
    return summary
