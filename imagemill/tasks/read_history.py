"""Reads the history of runs from the metrics/ folder of a bucket."""

from __future__ import annotations

from contextlib import closing

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.access import open_bucket
from imagemill.runs.history import History, history_of
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.settings import OutputSettings


@task(name="read-history", task_run_name="read-history", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def read_history(output: OutputSettings) -> History:
    """Read the rows of all runs below the output prefix."""
    with closing(open_bucket(output)) as bucket:
        return history_of(bucket)
