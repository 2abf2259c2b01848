"""Generates a shard: a few hundred jobs in one Prefect task run, on the process's one engine."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.runs.session import Session
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.settings import RunSettings
from imagemill.stores import Shard

_NAME = "jobs {shard.first} to {shard.last}"


@task(name="generate-shard", task_run_name=_NAME, cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def generate_shard(session: Session, shard: Shard) -> None:
    """Process the unfinished jobs of a shard. A failed job never fails the shard."""
    with session.recorder.telemetry.shard(*shard):
        session.wait(session.engine.run_shard, *shard)


@task(name="generate-shard", task_run_name=_NAME, cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def generate_shard_on_worker(settings: RunSettings, shard: Shard) -> None:
    """The same in a worker process of a cluster, which has its own session."""
    from imagemill.cluster.worker import work_off  # noqa: PLC0415 - needs the extra

    work_off(settings, shard)
