"""The main job: a Parquet catalog becomes images on S3."""

# No "from __future__ import annotations" here: Prefect reads the types of a flow's parameters as objects.

import errno
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger, unmapped
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from imagemill.cluster.dask import check_cluster, run_on_cluster
from imagemill.engine.engine import StopKind
from imagemill.errors import StoreUnavailableError
from imagemill.reports.artifacts import shown_in_prefect
from imagemill.runs.folder import PlanCounts
from imagemill.runs.remembered_limit import write_limit
from imagemill.runs.session import Session, open_session, stopped_with_the_flow
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.settings import (
    Api,
    Catalog,
    ExecutionSettings,
    LimitSettings,
    Output,
    PictureSettings,
    RunSettings,
)
from imagemill.tasks.approval import ask_approval
from imagemill.tasks.generate_shard import generate_shard
from imagemill.tasks.measure import count, measure
from imagemill.tasks.prepare import prepare
from imagemill.tasks.publish import publish
from imagemill.tasks.verb import without_traceback

_DISK_TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


@flow(name="generate-catalog", persist_result=False)
@without_traceback
def generate_catalog(
    catalog: Catalog,
    output: Output,
    api: Api = "together",  # type: ignore[assignment] # a name stands for the settings
    picture: PictureSettings = PictureSettings(),
    limits: LimitSettings = LimitSettings(),
    execution: ExecutionSettings = ExecutionSettings(),
) -> RunSummary:
    """Generate an image for each row of a catalog; a run that exists is resumed.

    Args:
        catalog: Where the prompts are: a path, or more about it.
        output: Where images and records go: s3://BUCKET/PREFIX, or more about it.
        api: Which image API: a vendor's name, or more about it.
        picture: What rows say nothing about.
        limits: How fast, and how much money.
        execution: How the work is divided and where it is kept.

    Returns:
        The run's summary.

    Raises:
        InputError: something given cannot be used; nothing was asked of the API.
        RunStoppedError: the run stopped early (key refused, budget, interrupted, bucket or store away)
            and can be resumed; it carries the summary.
    """
    return run(
        RunSettings(
            run_id=execution.run_id or default_run_id(),
            catalog=catalog,
            api=api,
            output=output,
            picture=picture,
            limits=limits,
            execution=execution,
        )
    )


def run(
    settings: RunSettings,
    *,
    before: Callable[[RunSettings], object] | None = None,
    retire: bool = False,
    prune: bool = False,
) -> RunSummary:
    """The whole of a run, within a flow run: prepare, generate, publish, measure.

    ``before`` is called once the run's parts are open and before anything else; ``retire`` and ``prune``
    are what :func:`imagemill.tasks.publish.publish` makes of them.
    """
    begun = time.monotonic()
    check_cluster(settings.execution)
    with (
        open_session(settings) as session,
        shown_in_prefect(session) as shown,
        session.recorder.telemetry.run(),
    ):
        if before is not None:
            before(settings)
        prepared = prepare(settings, return_state=True).result()
        threshold = settings.limits.approve_above_usd
        if threshold is not None and prepared.cost_usd > threshold:
            ask_approval(prepared.images, prepared.cost_usd, threshold)
        shards = {"settings": unmapped(settings), "shard": prepared.shards}
        try:
            if settings.execution.task_runner == "dask":
                with stopped_with_the_flow(session):
                    run_on_cluster(session, generate_shard, shards)
            else:
                # A runner of this run's own size: the flow's one is fixed before its parameters are known.
                workers = settings.execution.workers
                with (
                    ThreadPoolTaskRunner(max_workers=workers) as runner,  # type: ignore[var-annotated]
                    stopped_with_the_flow(session),
                ):
                    runner.map(generate_shard, shards).result()
        except (TerminationSignal, KeyboardInterrupt):  # cancelled in the UI, or the worker was stopped
            shown.conclude(count(session, prepared.counts, time.monotonic() - begun))
            raise
        if (learned := session.pacer.learned()) is not None:
            write_limit(session.api, learned)
        summary = _conclude(session, prepared.counts, begun, retire=retire, prune=prune)
        shown.conclude(summary)
        stopped = session.engine.stopped
    if stopped:
        raise RunStoppedError(summary, stopped.kind)
    if prepared.counts.negative_prompts:
        get_run_logger().warning(
            "%s rows have a negative prompt, which this model does not use.",
            f"{prepared.counts.negative_prompts:,}",
        )
    message, name = str(summary), None
    if summary.failed:
        message = f"{summary.failed:,} of {summary.unique:,} images failed; failed.parquet says why."
        name = "CompletedWithFailures"
    return cast("RunSummary", Completed(name=name, message=message, data=summary))


def _conclude(session: Session, counts: PlanCounts, begun: float, *, retire: bool, prune: bool) -> RunSummary:
    """Publish and measure; only count where the run was interrupted, or its bucket or disk fails."""
    stopped = session.engine.stopped
    if not (stopped and stopped.kind is StopKind.INTERRUPTED):
        try:
            changes = publish(session.settings, retire=retire, prune=prune, return_state=True).result()
            wall_s = time.monotonic() - begun
            return measure(session.settings, counts, changes, wall_s, return_state=True).result()
        except StoreUnavailableError as error:
            session.portal.call(session.engine.stop, StopKind.UNAVAILABLE, str(error))
        except OSError as error:
            if error.errno not in _DISK_TROUBLE:
                raise
            reason = f"The run's folder {session.folder.path} cannot be written ({error.strerror})."
            session.portal.call(session.engine.stop, StopKind.UNAVAILABLE, reason)
    return count(session, counts, time.monotonic() - begun)


def default_run_id() -> str:
    """A run id that a retry of the same flow run finds again, and so resumes."""
    with get_client(sync_client=True) as client:
        # Its first start; the time it is scheduled for moves with each retry.
        started = client.read_flow_run(UUID(flow_run.get_id())).start_time or datetime.now(UTC)
    return f"{started:%Y%m%d-%H%M%S}-{str(flow_run.get_id())[-6:]}"
