"""Measures an account, so that later runs start at its limit."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from pathlib import Path

import anyio
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from imagemill.blocks.loading import image_api
from imagemill.engine.calibration import Calibration, measure_account
from imagemill.engine.limits.pacer import Limit
from imagemill.reports.calibration_plot import write_plot
from imagemill.runs.presets import warn_of_lost_presets
from imagemill.runs.remembered_limit import variable_name, write_limit
from imagemill.runs.states import completed
from imagemill.runs.user_errors import one_sentence
from imagemill.settings import ApiSettings, Budget, OneApi


@flow(name="calibrate", persist_result=True, result_serializer="json")
@one_sentence
def calibrate(
    api: OneApi = ApiSettings(),
    budget: Budget = Budget(),
    plot: Path | None = None,
) -> Calibration:
    """Measure an account's limits on concurrency and rate. This makes real, paid images.

    Args:
        api: Which image API and model to use; in Python, a vendor's name is enough.
        budget: What the calibration may spend.
        plot: Write a plot of throughput by concurrency to this HTML file.

    Returns:
        The limit and the measurements. Runs with concurrency auto at this account and model start from the
        limit: for 30 days, or for an hour, in which it fades, where the rate follows recent use (Together).

    Raises:
        InputError: the account cannot be measured.
    """
    warn_of_lost_presets()
    account = image_api(api)
    found = anyio.run(measure_account, account, budget)
    if found.limit_seen:
        write_limit(account, Limit(found.concurrency, found.per_minute, found.took_per_s))
        get_run_logger().info("Stored in the Variable %s.", variable_name(account))
    create_table_artifact(
        [level.model_dump() for level in found.levels],
        key=f"calibration-{account.provider}",
        description=str(found),
    )
    if plot is not None:
        write_plot(found, plot)
    return completed(str(found), found)
