"""Refreshes a catalog's images: generates what is new or changed, and retires what is gone."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.catalog.access import refuse_other_paths
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
    RefreshSettings,
)
from imagemill.tasks.approval import ask_loss_approval
from imagemill.tasks.prepare import prepare


@takes_frames
@flow(name="refresh-catalog", persist_result=True, result_serializer="json")
@one_sentence
def refresh_catalog(  # noqa: PLR0917 - the fields of the form
    catalog: Catalog,
    output: Output,
    api: Api = ApiSettings(),
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
    prune: bool = False,  # noqa: FBT001, FBT002 - a field of the form
    refresh: RefreshSettings = RefreshSettings(),
    path: str = "",
    quality: QualitySettings = QualitySettings(),
) -> RunSummary:
    """Bring the images of a catalog up to date. Unchanged rows cost nothing.

    Args:
        catalog: Where the prompts come from; in Python, a path or a DataFrame is enough.
        output: Where the images and records are; in Python, s3://BUCKET/PREFIX is enough.
        api: Which image API and model to use; in Python, a vendor's name is enough.
        picture: Defaults for rows that do not set their own.
        limits: Limits on speed and cost.
        execution: How the run is executed and where its state is stored.
        prune: Delete images that no row has used for some days: refresh.prune_after_days says how many.
        refresh: What the refresh may take away, and what it does before it takes more.
        path: Read this path instead of the catalog's own: an event names what was uploaded.
        quality: Whether pictures are measured, and what happens to those that look wrong.

    Returns:
        The run's summary, with the numbers of added, changed, unchanged and retired rows.

    Raises:
        InputError: unusable input or settings, another run writes to this output, or the refresh would take
            too much from the manifest; nothing was sent to the API.
        RunStoppedError: the run stopped early and can be resumed.
    """
    if path:
        catalog = catalog.model_copy(update={"path": path})
    refuse_other_paths(catalog.path, refresh.only_paths)
    settings = run_settings(catalog, output, api, picture, limits, execution, quality)
    settings = settings.model_copy(update={"refresh": refresh, "prune": prune})
    with open_run(settings) as run:
        prepared = prepare(run.session)
        ask_loss_approval(prepared.loss)
        approve(run, prepared)
        generate(run, prepared)
        summary = finish(run, prepared)
    return outcome(run, prepared, summary)
