"""Tries a run's failed jobs again, under the same run id."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

from prefect import flow

from imagemill.errors import InputError
from imagemill.flows.generate_catalog import run
from imagemill.runs.folder import RunFolder
from imagemill.runs.session import open_bucket
from imagemill.runs.summary import RunSummary
from imagemill.settings import LimitSettings, Output, RunSettings
from imagemill.tasks.reopen_failed import reopen_failed
from imagemill.tasks.verb import without_traceback


@flow(name="retry-failed", persist_result=False)
@without_traceback
def retry_failed(
    run_id: str,
    permanent: bool = False,  # noqa: FBT001, FBT002 - a field of the form
    output: Output | None = None,
    limits: LimitSettings | None = None,
) -> RunSummary:
    """Try a run's failed jobs again; what its attempts cost and were stays on record.

    Args:
        run_id: The run.
        permanent: Also those that would fail again with the same input, such as refused prompts.
        output: Where the run's records are, if another machine ran it: s3://BUCKET/PREFIX.
        limits: How fast, and how much money, if not as before.

    Returns:
        The run's summary.

    Raises:
        InputError: there is no such run.
        RunStoppedError: the run stopped early and can be resumed.
    """
    settings = recorded_settings(run_id, output)
    if limits is not None:
        settings = settings.model_copy(update={"limits": limits})
    return run(
        settings,
        before=lambda of: reopen_failed(of, permanent=permanent, return_state=True).result(),
    )


def recorded_settings(run_id: str, output: Output | None) -> RunSettings:
    """What a run was told, by its record on this machine, or else in the bucket.

    Raises:
        InputError: there is no such run.
    """
    folder = RunFolder(run_id)
    if output is not None:
        bucket = open_bucket(output)
        folder.fetch(bucket)
        bucket.close()
    record = folder.read_record()
    if record is None:
        raise InputError(
            f"This machine knows no run {run_id!r} (looked in {folder.path}): say by its output where"
            " its records are."
        )
    return record[0]
