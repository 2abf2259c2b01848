"""The steps of a run, shared by all flows that make images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, unmapped
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from imagemill.bucket.manifest import MANIFEST
from imagemill.bucket.probe import probe_copies
from imagemill.cluster.dask import check_cluster, leading, run_on_cluster
from imagemill.cluster.membership import Membership
from imagemill.engine.engine import StopKind
from imagemill.errors import StoreUnavailableError
from imagemill.reports.artifacts import RunArtifacts, shown_in_prefect
from imagemill.reports.assets import METRICS, RECORDS, assets_of, sources_of
from imagemill.reports.measurement import count
from imagemill.runs.environment import refuse_proxies
from imagemill.runs.presets import warn_of_lost_presets
from imagemill.runs.remembered_limit import write_limit
from imagemill.runs.session import WAKE_S, Session, open_session
from imagemill.runs.states import ended_state
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.settings import (
    ApiSettings,
    CatalogSettings,
    ExecutionSettings,
    LimitSettings,
    OutputSettings,
    PictureSettings,
    QualitySettings,
    RouteSettings,
    RunSettings,
    only_route,
)
from imagemill.tasks.approval import COST, answers, ask_approval
from imagemill.tasks.generate_shard import generate_shard, generate_shard_on_worker
from imagemill.tasks.measure import measure
from imagemill.tasks.prepare import Prepared
from imagemill.tasks.preview import preview_within
from imagemill.tasks.publish import publish, replaces_manifest


class Run:
    """A run within a flow: its session, its artifacts in Prefect's UI, and its membership on a cluster."""

    __slots__ = ("artifacts", "membership", "session")

    def __init__(self, session: Session, artifacts: RunArtifacts, membership: Membership | None) -> None:
        self.session = session
        self.artifacts = artifacts
        self.membership = membership


@contextmanager
def open_run(settings: RunSettings) -> Iterator[Run]:
    """Open a run, and show it in Prefect's UI while the block runs.

    Raises:
        InputError: something the settings name cannot be used.
    """
    refuse_proxies()
    warn_of_lost_presets()
    check_cluster(settings.execution)
    with ExitStack() as stack:
        session = stack.enter_context(open_session(settings))
        for notice in dict.fromkeys(route.api.notice for route in session.engine.routes):
            if notice:
                get_run_logger().warning("%s", notice)
        on_dask = settings.execution.on_dask
        membership = stack.enter_context(leading(session)) if on_dask else None
        artifacts = stack.enter_context(shown_in_prefect(session))
        stack.enter_context(session.recorder.telemetry.run())
        yield Run(session, artifacts, membership)


def approve(run: Run, prepared: Prepared) -> None:
    """Ask for approval of a run that would cost more than it may, beside a preview of it.

    Raises:
        InputError: it was not approved, or there is nobody to ask.
        Pause: the flow run is suspended until there is an answer, with nothing of the run left open.
    """
    limit_usd = run.session.settings.limits.approve_above_usd
    if limit_usd is None:
        return
    look = "" if answers(COST) else preview_within(run.session, prepared, limit_usd)
    if not run.session.engine.stopped:
        ask_approval(prepared.images, prepared.cost_usd, limit_usd, prepared.counts, look)


def generate(run: Run, prepared: Prepared) -> None:
    """Process the run's shards, in threads of this process or on a Dask cluster."""
    session = run.session
    if prepared.images:
        if session.settings.output.copies:
            probe_copies(session.bucket)
        session.wait(session.engine.check_account)
    try:
        if run.membership is not None:
            with session.interruptible():
                run_on_cluster(session, run.membership, generate_shard_on_worker, prepared.shards)
        else:
            # A separate runner: the flow's own one gets its size before the parameters are known.
            runner: ThreadPoolTaskRunner[None] = ThreadPoolTaskRunner(session.settings.execution.workers)
            with runner, session.interruptible():
                shards = {"session": unmapped(session), "shard": prepared.shards}
                _wait_for(runner.map(generate_shard, shards))
                session.work_off(session.engine.run_parked)
    except (TerminationSignal, KeyboardInterrupt):  # cancelled in the UI, or the worker was stopped
        run.artifacts.conclude(count(session, prepared.counts))
        raise
    for route in session.engine.routes:
        if (learned := route.pacer.learned()) is not None:
            write_limit(route.api, learned)


def _wait_for(futures: PrefectFutureList[Any]) -> None:
    """Wait until all are over, or one has raised."""
    over = SimpleQueue[PrefectFuture[Any]]()
    for future in futures:
        future.add_done_callback(over.put)
    left = len(futures)
    while left:
        with suppress(Empty):
            over.get(timeout=WAKE_S).result()
            left -= 1


def finish(run: Run, prepared: Prepared) -> RunSummary:
    """Publish and measure, or only count if the run was interrupted or its bucket or disk fails."""
    with run.session.interruptible():
        summary = _published(run.session, prepared)
    run.artifacts.conclude(summary)
    return summary


def _published(session: Session, prepared: Prepared) -> RunSummary:
    stopped = session.engine.stopped
    if not (stopped and stopped.kind is StopKind.INTERRUPTED):
        try:
            with session.folder.trouble_named():
                return _published_and_measured(session, prepared)
        except StoreUnavailableError as error:
            session.stop(StopKind.UNAVAILABLE, str(error))
    return count(session, prepared.counts)


def _published_and_measured(session: Session, prepared: Prepared) -> RunSummary:
    output, counts, newer = session.bucket.uri, prepared.counts, prepared.newer
    manifest = assets_of(output, MANIFEST) if replaces_manifest(session, counts, newer=newer) else []
    publishing = publish.with_options(assets=manifest, asset_deps=sources_of(session.settings.catalog.path))
    changes = publishing(session, counts, newer=newer)
    measuring = measure.with_options(assets=assets_of(output, METRICS, RECORDS))
    return measuring(session, counts, changes)


def outcome(run: Run, prepared: Prepared, summary: RunSummary) -> RunSummary:
    """What the flow returns: a state that tells how the run went, with the summary as its data.

    Raises:
        RunStoppedError: the run stopped early.
    """
    if prepared.newer is not None:
        get_run_logger().warning(
            "The manifest stays as it is, for run %r has published it since. The next run of the catalog"
            " takes over what this one has changed.",
            prepared.newer.run_id,
        )
    if stopped := run.session.engine.stopped:
        raise RunStoppedError(summary, stopped.kind)
    if summary.lost_images:
        get_run_logger().warning(
            "%s images that were paid for were lost, and made anew: the log says which.",
            f"{summary.lost_images:,}",
        )
    if prepared.counts.negative_prompts:
        get_run_logger().warning(
            "%s rows have a negative prompt, which this model ignores.",
            f"{prepared.counts.negative_prompts:,}",
        )
    if summary.unjudged:
        get_run_logger().warning("%s", summary.judged_in_words)
    if summary.prune_failed:
        get_run_logger().warning(
            "The bucket did not delete %s objects; runs/%s/prune.parquet says which and why.",
            f"{summary.prune_failed:,}",
            summary.run_id,
        )
    return cast("RunSummary", ended_state(summary))


def run_settings(
    catalog: CatalogSettings,
    output: OutputSettings,
    api: ApiSettings | list[RouteSettings],
    picture: PictureSettings,
    limits: LimitSettings,
    execution: ExecutionSettings,
    quality: QualitySettings,
) -> RunSettings:
    """The settings of a run. Without a run id, it is derived from the flow run."""
    several = api if isinstance(api, list) else []
    if len(several) == 1:
        api, limits = only_route(several[0], limits)
        several = []
    return RunSettings(
        run_id=execution.run_id or _default_run_id(),
        catalog=catalog,
        api=several[0] if several else api,
        routes=several,
        output=output,
        picture=picture,
        limits=limits,
        execution=execution,
        quality=quality,
    )


def _default_run_id() -> str:
    """A run id that a retry of the same flow run gets as well, so that it resumes the run."""
    with get_client(sync_client=True) as client:
        # Its first start; the scheduled time changes with each retry.
        started = client.read_flow_run(UUID(flow_run.get_id())).start_time or datetime.now(UTC)
    return f"{started:%Y%m%d-%H%M%S}-{str(flow_run.get_id())[-6:]}"
