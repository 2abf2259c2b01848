"""The settings a run began with: what a resume and a retry of its failed jobs start from."""

from __future__ import annotations

from imagemill.bucket.access import open_bucket
from imagemill.errors import InputError
from imagemill.runs.folder import RunFolder
from imagemill.settings import OutputSettings, RunSettings


def recorded_settings(run_id: str, output: OutputSettings | None) -> RunSettings:
    """The settings a run began with, by its record on this machine, or else in the bucket.

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
