"""Generates a shard: a few hundred jobs in one Prefect task run, on the process's one engine."""

from __future__ import annotations

from imagemill.cluster.worker import work_off
from imagemill.runs.session import open_session
from imagemill.settings import RunSettings
from imagemill.stores import Shard
from imagemill.tasks.verb import verb


@verb("generate-shard", "jobs {shard.first} to {shard.last}")
def generate_shard(settings: RunSettings, shard: Shard) -> None:
    """Work off the unfinished jobs of a shard. A failed job never fails the shard."""
    if settings.execution.task_runner == "dask":
        work_off(settings, shard)
        return
    with open_session(settings) as session, session.recorder.telemetry.shard(*shard):
        session.wait(session.engine.run_shard, *shard)
