"""Prepares a run: makes or loads its plan, finds existing images, and counts what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest_guard import NewerRun, refuse_older_run
from imagemill.catalog.counts import PlanCounts
from imagemill.runs.caller import at_a_terminal
from imagemill.runs.planning import newer_than, plan_run
from imagemill.runs.recovery import drop_leftovers, find_images, upload_unsaved
from imagemill.runs.session import Session
from imagemill.runs.user_errors import plain_advice, without_secrets_in_errors
from imagemill.runs.wording import in_names_of_settings
from imagemill.stores import Shard, shards
from imagemill.usd import exact


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is left to do: the plan's counts, the shards of unfinished jobs, their number and cost in USD.

    ``loss`` says what a refresh would take from the manifest, if someone has to approve that first. ``newer``
    is the run that has published the manifest since: then it stays as it is.
    """

    counts: PlanCounts
    shards: list[Shard]
    images: int
    cost_usd: float
    loss: str | None = None
    newer: NewerRun | None = None


@task(name="prepare", task_run_name="prepare", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
@plain_advice
def prepare(session: Session, *, reviewed: bool = False) -> Prepared:
    """Plan the run, or load its plan, and find out what is left to do.

    A run that is older than the manifest may only make pictures that the manifest asks for as well, and
    change those that were ``reviewed``.

    Raises:
        InputError: the catalog cannot be used, the run's id belongs to another run, or the run is too old.
        StoreUnavailableError: the bucket is unavailable, or the disk is full.
    """
    with session.folder.trouble_named():
        begun = session.folder.record.exists()
        newer = newer_than(session)
        if newer is not None and not (newer.wants_all or reviewed):
            refuse_older_run(session.bucket.uri, session.settings.run_id, newer.run_id)
        counts, loss = plan_run(session, publishes=newer is None)
        for note in counts.columns.get("notes", ()):
            get_run_logger().warning("%s", note if at_a_terminal() else in_names_of_settings(note))
        session.folder.forget_summary()
        drop_leftovers(session)
        upload_unsaved(session)
        unfinished = session.wait(session.store.unfinished_numbers)
        asked = session.before.attempts > 0
        unfinished = find_images(session, unfinished, begun=begun, asked=asked)
        return left_to_do(session, counts, unfinished, loss, newer)


def left_to_do(
    session: Session,
    counts: PlanCounts,
    unfinished: Sequence[int],
    loss: str | None,
    newer: NewerRun | None,
) -> Prepared:
    """What is left to do, with the jobs of these numbers unfinished; the run's progress starts from there."""
    totals = session.wait(session.store.totals)
    wanted = counts.unique - totals.rejected
    session.recorder.begin(unique=wanted, done=totals.done, failed=totals.failed, cost_usd=totals.cost_usd)
    cost_usd = float(exact(counts.cost_usd * len(unfinished) / counts.unique)) if counts.unique else 0.0
    cost_usd = float(exact(cost_usd + len(unfinished) * session.engine.judge_usd))
    session.wait(session.announce, unfinished)
    size = session.settings.execution.shard_size
    return Prepared(counts, shards(unfinished, size), len(unfinished), cost_usd, loss, newer)
