"""Refreshes a catalog's images: generates only what is new or has changed, and retires what is gone."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.bucket.output_lease import output_lease
from imagemill.pipeline import default_run_id, finish, generate, open_run, outcome
from imagemill.runs.summary import RunSummary
from imagemill.runs.user_errors import one_sentence
from imagemill.settings import (
    Api,
    Catalog,
    ExecutionSettings,
    LimitSettings,
    Output,
    PictureSettings,
    RunSettings,
)
from imagemill.tasks.approval import ask_approval
from imagemill.tasks.prepare import prepare


@flow(name="refresh-catalog", persist_result=False)
@one_sentence
def refresh_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = "together",  # type: ignore[assignment] # a name stands for the settings
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
    prune: bool = False,  # noqa: FBT001, FBT002 - a field of the form
) -> RunSummary:
    """Bring the images of a catalog up to date; unchanged rows cost nothing.

    Args:
        catalog: Where the prompts are: a path, or more about it.
        output: Where images and records are: s3://BUCKET/PREFIX, or more about it.
        api: Which image API: a vendor's name, or more about it.
        picture: What rows say nothing about.
        limits: How fast, and how much money.
        execution: How the work is divided and where it is kept.
        prune: Delete the images of rows that are gone or changed, unless another row uses them.

    Returns:
        The run's summary: added, changed, unchanged, retired, what it cost and what it saved.

    Raises:
        InputError: something given cannot be used, or another refresh of this output is under way.
        RunStoppedError: the run stopped early and can be resumed.
    """
    settings = RunSettings(
        run_id=execution.run_id or default_run_id(),
        catalog=catalog,
        api=api,
        output=output,
        picture=picture,
        limits=limits,
        execution=execution,
    )
    with (
        open_run(settings) as run,
        output_lease(run.session.bucket, settings.run_id, run.session.folder.path),
    ):
        prepared = prepare(run.session)
        ask_approval(prepared.images, prepared.cost_usd, limits.approve_above_usd, prepared.counts)
        generate(run, prepared)
        summary = finish(run, prepared, retire=True, prune=prune)
    return outcome(run, prepared, summary)
