"""Draws the dashboard over all runs of an output, and emits events for regressions and spend."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.reports.dashboard import DashboardSummary
from imagemill.runs.presets import warn_of_lost_presets
from imagemill.runs.states import completed
from imagemill.runs.user_errors import one_sentence
from imagemill.settings import Output, RegressionSettings
from imagemill.tasks.draw_dashboard import draw_dashboard
from imagemill.tasks.emit_alerts import emit_alerts
from imagemill.tasks.read_history import read_history


@flow(name="build-dashboard", persist_result=True, result_serializer="json")
@one_sentence
def build_dashboard(
    output: Output, regressions: RegressionSettings = RegressionSettings()
) -> DashboardSummary:
    """Draw the dashboard of all runs below an output prefix, from its metrics/ folder.

    Args:
        output: Where the images and records are; in Python, s3://BUCKET/PREFIX is enough.
        regressions: When a run counts as a regression.

    Returns:
        What the dashboard shows, and where it is.

    Raises:
        InputError: unusable settings.
    """
    warn_of_lost_presets()
    history = read_history(output)
    summary = draw_dashboard(output, history, regressions)
    emit_alerts(output, summary)
    return completed(str(summary), summary)
