"""The settings that a run began with, for a resume or a retry of its failed jobs."""

from __future__ import annotations

from imagemill.bucket.access import open_bucket
from imagemill.errors import InputError
from imagemill.runs.folder import RunFolder
from imagemill.settings import RUN_ID, OutputSettings, RunSettings


def recorded_settings(run_id: str, output: OutputSettings | None) -> RunSettings:
    """The settings that a run began with, from its record on this machine or in the bucket.

    Raises:
        InputError: there is no such run.
    """
    if not RUN_ID.fullmatch(run_id):  # it becomes a part of paths
        raise InputError(f"There is no run {run_id!r}: an id has letters, digits, '.', '_' and '-'.")
    folder = RunFolder(run_id)
    if output is not None:
        bucket = open_bucket(output)
        folder.fetch(bucket)
        bucket.close()
    record = folder.read_record()
    if record is None:
        raise InputError(
            f"There is no run {run_id!r} on this machine (looked in {folder.path}). If it ran on another"
            " machine, set its output, which has its records."
        )
    settings = record[0]
    if output is None:
        return settings
    # Where the bucket is and who may read it is this machine's to say, not the record's.
    place = {"s3_endpoint_url": output.s3_endpoint_url, "s3_bucket_block": output.s3_bucket_block}
    return settings.model_copy(update={"output": settings.output.model_copy(update=place)})
