"""The main job: a Parquet catalog becomes images on S3."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

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


@flow(name="generate-catalog", persist_result=False)
@one_sentence
def generate_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = "together",  # type: ignore[assignment] # a name stands for the settings
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
) -> RunSummary:
    """Generate an image for each row of a catalog; a run that exists is resumed.

    Args:
        catalog: Where the prompts are: a path, or more about it.
        output: Where images and records go: s3://BUCKET/PREFIX, or more about it.
        api: Which image API: a vendor's name, or more about it.
        picture: What rows say nothing about.
        limits: How fast, and how much money.
        execution: How the work is divided and where it is kept.

    Returns:
        The run's summary.

    Raises:
        InputError: something given cannot be used; nothing was asked of the API.
        RunStoppedError: the run stopped early (key refused, budget, interrupted, bucket or store away)
            and can be resumed; it carries the summary.
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
    with open_run(settings) as run:
        prepared = prepare(run.session)
        ask_approval(prepared.images, prepared.cost_usd, limits.approve_above_usd, prepared.counts)
        generate(run, prepared)
        summary = finish(run, prepared)
    return outcome(run, prepared, summary)
