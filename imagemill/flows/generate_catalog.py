"""The main job: a Parquet catalog becomes images on S3."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.pipeline import approve, finish, generate, open_run, outcome, run_settings
from imagemill.runs.stored_frame import takes_frames
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
    QualitySettings,
)
from imagemill.tasks.prepare import prepare


@takes_frames
@flow(name="generate-catalog", persist_result=True, result_serializer="json")
@one_sentence
def generate_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = ApiSettings(),
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
    quality: QualitySettings = QualitySettings(),
) -> RunSummary:
    """Generate an image for each row of a catalog. An existing run is resumed.

    Args:
        catalog: Where the prompts come from; in Python, a path or a DataFrame is enough.
        output: Where the images and records go; in Python, s3://BUCKET/PREFIX is enough.
        api: Which image API and model to use; in Python, a vendor's name is enough.
        picture: Defaults for rows that do not set their own.
        limits: Limits on speed and cost.
        execution: How the run is executed and where its state is stored.
        quality: Whether pictures are measured, and what happens to those that look wrong.

    Returns:
        The run's summary.

    Raises:
        InputError: unusable input or settings; nothing was sent to the API.
        RunStoppedError: the run stopped early (key refused, budget, interrupted, bucket or store
            unavailable) and can be resumed. It carries the summary.
    """
    settings = run_settings(catalog, output, api, picture, limits, execution, quality)
    with open_run(settings) as run:
        prepared = prepare(run.session)
        approve(run, prepared)
        generate(run, prepared)
        summary = finish(run, prepared)
    return outcome(run, prepared, summary)
