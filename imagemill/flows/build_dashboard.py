"""The dashboard over all runs of a bucket, and an event for each that did worse than those before it."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.reports.dashboard import DashboardSummary, draw_dashboard
from imagemill.reports.history import read_history
from imagemill.reports.regression_events import tell_regressions
from imagemill.settings import Output, RegressionSettings
from imagemill.tasks.verb import without_traceback


@flow(name="build-dashboard", persist_result=False)
@without_traceback
def build_dashboard(
    output: Output, regressions: RegressionSettings = RegressionSettings()
) -> DashboardSummary:
    """Draw the dashboard of all runs below an output prefix, from its metrics/ alone.

    Args:
        output: Where the runs' images and records went: s3://BUCKET/PREFIX, or more about it.
        regressions: When a run counts as a regression.

    Returns:
        What the dashboard shows, and where it is.

    Raises:
        InputError: something given cannot be used.
    """
    history = read_history(output, return_state=True).result()
    summary = draw_dashboard(output, history, regressions, return_state=True).result()
    tell_regressions(output, summary, return_state=True).result()
    return summary
