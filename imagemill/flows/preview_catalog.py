"""Previews a catalog's images before all of them are paid for."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from typing import Annotated, cast

from prefect import flow
from pydantic import Field

from imagemill.pipeline import open_run, run_settings
from imagemill.reports.measurement import count
from imagemill.reports.preview import Preview
from imagemill.runs.states import outcome_state
from imagemill.runs.stored_frame import takes_frames
from imagemill.runs.summary import RunStoppedError
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
from imagemill.tasks.preview import IMAGES, preview


@takes_frames
@flow(name="preview-catalog", persist_result=True, result_serializer="json")
@one_sentence
def preview_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = ApiSettings(),
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
    images: Annotated[int, Field(ge=1, le=200, description="How many pictures to make.")] = IMAGES,
    quality: QualitySettings = QualitySettings(),
) -> Preview:
    """Make a few of a catalog's images, spread over all of it, and say what all of them would cost.

    The whole catalog is planned, but the manifest is left as it is. Resuming the run makes the rest.

    Args:
        catalog: Where the prompts come from; in Python, a path or a DataFrame is enough.
        output: Where the images and records go; in Python, s3://BUCKET/PREFIX is enough.
        api: Which image API and model to use; in Python, a vendor's name is enough.
        picture: Defaults for rows that do not set their own.
        limits: Limits on speed and cost.
        execution: How the run is executed and where its state is stored.
        images: How many pictures to make. With variations, whole rows are shown.
        quality: Whether pictures are measured, and what happens to those that look wrong.

    Returns:
        What was made, what all images would cost, and where the page with the pictures is.

    Raises:
        InputError: unusable input or settings; nothing was sent to the API.
        RunStoppedError: the preview stopped early and can be resumed. It carries the summary.
    """
    with open_run(run_settings(catalog, output, api, picture, limits, execution, quality)) as run:
        prepared = prepare(run.session)
        found = preview(run.session, prepared, images)
        summary = count(run.session, prepared.counts)
        run.artifacts.conclude(summary)
        if stopped := run.session.engine.stopped:
            raise RunStoppedError(summary, stopped.kind)
    nothing = found.shown == found.failed and bool(found.unique or found.rejected)
    ended = outcome_state(str(found), found, nothing=nothing, failed=found.failed, rejected=found.rejected)
    return cast("Preview", ended)
