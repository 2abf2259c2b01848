"""Refreshes a catalog's images: generates what is new or changed, and retires what is gone."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.pipeline import finish, generate, open_run, outcome, run_settings
from imagemill.runs.summary import RunSummary
from imagemill.runs.user_errors import one_sentence
from imagemill.settings import (
    Api,
    ApiSettings,
    Catalog,
    ExecutionSettings,
    LimitSettings,
    Output,
    PictureSettings,
)
from imagemill.tasks.approval import ask_approval
from imagemill.tasks.prepare import prepare


@flow(name="refresh-catalog", persist_result=False)
@one_sentence
def refresh_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = ApiSettings(),
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
    prune: bool = False,  # noqa: FBT001, FBT002 - a field of the form
) -> RunSummary:
    """Bring the images of a catalog up to date. Unchanged rows cost nothing.

    Args:
        catalog: Where the prompts come from: a path, or catalog settings.
        output: Where the images and records are: s3://BUCKET/PREFIX, or output settings.
        api: Which image API and model to use: a vendor's name, or API settings.
        picture: Defaults for rows that do not set their own.
        limits: Limits on speed and cost.
        execution: How the run is executed and where its state is stored.
        prune: Delete images of rows that are gone or changed, unless another row uses them.

    Returns:
        The run's summary, with the numbers of added, changed, unchanged and retired rows.

    Raises:
        InputError: unusable input or settings, or another run writes to this output.
        RunStoppedError: the run stopped early and can be resumed.
    """
    settings = run_settings(catalog, output, api, picture, limits, execution)
    with open_run(settings) as run:
        prepared = prepare(run.session)
        ask_approval(prepared.images, prepared.cost_usd, limits.approve_above_usd, prepared.counts)
        generate(run, prepared)
        summary = finish(run, prepared, retire=True, prune=prune)
    return outcome(run, prepared, summary)
