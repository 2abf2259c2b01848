"""Plans a run, once: its catalog becomes jobs in the store and a plan in the bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from prefect.runtime import flow_run

from imagemill.blocks.loading import resolved
from imagemill.bucket.manifest import Publisher
from imagemill.bucket.manifest_guard import (
    NewerRun,
    loss_of_refresh,
    newer_run,
    publisher_of,
    rebought_columns,
    refuse_empty_catalog,
    refuse_other_catalog,
    standing,
)
from imagemill.catalog.access import catalog_of
from imagemill.catalog.columns import described
from imagemill.catalog.cost import refuse_guesses
from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.plan import Planner, planned_jobs, write_plan
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import INPUT_FIELDS, NewJobs
from imagemill.parquet import read_batches
from imagemill.runs.session import Session
from imagemill.settings import RefreshSettings, RunSettings

_ADDED_AT_ONCE = 10_000


_LEFT_TO_THE_MODEL = frozenset({"model", "steps"})
"""Settings that may be left out: then they are the API's own, and were so before."""


def refuse_other_run(settings: RunSettings, known: RunSettings) -> None:
    """Check that a run id is not reused for something else: another catalog, API, model, size or output.

    Raises:
        InputError: the existing run has different ones.
    """
    if known.api.model is None:  # a record of an earlier version, which kept what it was given
        known = known.model_copy(update={"api": resolved(known.api)})
    given = settings.identity()
    for name, value in known.identity().items():
        left_out = name in _LEFT_TO_THE_MODEL and (given[name] is None or value is None)
        if given[name] != value and not left_out:
            raise InputError(
                f"Run {settings.run_id!r} exists with the {name} {value!r}, not {given[name]!r}. Resume it"
                f" as it is with: imagemill resume {settings.run_id}, or choose another run id."
            )


def _refuse_changed_catalog(settings: RunSettings, counts: PlanCounts, digest: str | None) -> None:
    """Check that the catalog is the one that was planned, as far as it can be read from here.

    Raises:
        InputError: it has changed.
    """
    if settings.execution.keep_plan:
        return
    try:
        catalog = catalog_of(settings.catalog, settings.output)
    except (InputError, StoreUnavailableError):
        return  # moved away, or on another machine: the plan has all that is needed
    if catalog.digest == digest or (digest is None and catalog.rows == counts.rows):
        return
    raise InputError(
        f"The catalog {settings.catalog.path!r} has changed since run {settings.run_id!r} was planned"
        f" ({counts.rows:,} rows then, {catalog.rows:,} now). Choose another run id, for which the images"
        f" that exist cost nothing, or finish the run as it was planned: imagemill resume {settings.run_id}."
    )


def _refuse_run_wide_reason(session: Session, counts: PlanCounts, planner: Planner) -> None:
    """Check that the settings alone do not rule out every row.

    Raises:
        InputError: every row was rejected for the reason for which a row that sets nothing would be.
    """
    reason = planner.refusal_of_settings() if counts.rows and not counts.unique else None
    if reason is None:
        return
    for batch in read_batches(session.folder.rejected, ["reason"]):
        if not pc.all(pc.equal(batch["reason"], reason)).as_py():
            return
    raise InputError(
        f"Every row of the catalog {session.settings.catalog.path!r} was rejected, {counts.rows:,} of"
        f" {counts.rows:,} for this reason, which the settings give: {reason}."
    )


def newer_than(session: Session) -> NewerRun | None:
    """The run that has published the manifest since this one was planned, if its catalog is newer."""
    record = session.folder.read_record()
    if record is None:
        return None
    this_run = Publisher(session.settings.run_id, session.folder.read_planned_at())
    return newer_run(session.bucket, this_run, session.folder.plan, is_part=is_part(*record))


def plan_run(session: Session, *, publishes: bool = True) -> tuple[PlanCounts, str | None]:
    """Plan the run, with its jobs in the store and its files in the bucket, or load its existing plan.

    The second is what publishing it would take from the manifest, if someone has to approve that first.
    """
    settings, folder, store = session.settings, session.folder, session.store
    record, flow_run_id = folder.read_record(), flow_run.get_id()
    if record is not None:
        known, counts = record
        refuse_other_run(settings, known)
        if not folder.is_of(session.maker.picture_model):
            raise InputError(
                f"Run {settings.run_id!r} was planned with other further fields (extra_fields of its block),"
                " or with them for another server: its pictures would differ. Set them as they were, or"
                " choose another run id."
            )
        if flow_run_id is None or folder.read_flow_run_id() != flow_run_id:
            _refuse_changed_catalog(settings, counts, folder.read_catalog_digest())
            folder.note_flow_run(flow_run_id, session.bucket)
        # Otherwise a retry of the same flow run, which continues its plan even if the catalog has changed.
        if not session.wait(store.is_planned):
            # The run began on another machine, or its store was lost: restore the jobs from the plan.
            _restore_jobs(session, known)
        refuse_guesses(counts, settings.limits)
        return counts, _refuse_loss(session, counts) if publishes else None
    session.wait(store.clear)
    catalog = session.catalog or catalog_of(settings.catalog, settings.output)
    planner = Planner(session.maker, settings.picture)
    with _adding(session) as add:
        counts = write_plan(planner, catalog, folder.plan, folder.rejected, add)
    counts = replace(counts, columns=described(catalog.usage))
    _refuse_run_wide_reason(session, counts, planner)
    refuse_guesses(counts, settings.limits)
    loss = _refuse_loss(session, counts)
    session.wait(store.mark_planned)
    published = publisher_of(session.bucket)
    after = published.planned_at if published is not None else ""
    model = session.maker.picture_model
    folder.write_record(settings, counts, catalog.digest, model, flow_run_id, after=after)
    folder.publish_plan(session.bucket)
    return counts, loss


def is_part(settings: RunSettings, counts: PlanCounts) -> bool:
    """Whether the run's catalog is a part of that of the manifest, which keeps its other rows."""
    merged = settings.output.merge_manifest or settings.catalog.limit is not None
    return merged or bool(counts.columns.get("partial"))


def _refuse_loss(session: Session, counts: PlanCounts) -> str | None:
    """Check what publishing this plan would take from the manifest; the loss, if someone has to approve it.

    Raises:
        InputError: it would take too much.
    """
    settings = session.settings
    refresh, path = settings.refresh, settings.catalog.path
    if settings.output.replace_manifest or (refresh and refresh.allow_loss):
        return None
    columns: dict[str, str] = counts.columns.get("used", {})
    matched = {own: name for own, name in columns.items() if own not in settings.catalog.columns}
    repaired = bool(counts.columns.get("partial"))
    found = standing(session.bucket, session.folder.plan, matched, repaired=repaired)
    if found is None:
        return None
    asks = refresh is not None and refresh.approve_loss
    if refresh is None or is_part(settings, counts):
        if not settings.output.merge_manifest:
            if not counts.rows and not repaired:
                refuse_empty_catalog(found, path)
            refuse_other_catalog(found, path)
    elif (loss := loss_of_refresh(found, path, refresh, prune=settings.prune)) and asks:
        return loss
    elif loss:
        raise InputError(
            f"{loss} Nothing was generated or changed. If that is meant, say so with --allow-loss, or raise"
            " --max-retired-share."
        )
    rebought = rebought_columns(found, (refresh or RefreshSettings()).max_retired_share)
    if rebought and not asks:
        raise InputError(f"{rebought} Nothing was generated or changed.")
    return rebought


@contextmanager
def _adding(session: Session) -> Iterator[Callable[[NewJobs], None]]:
    """Adds jobs to the store, ten thousand at a time, while the next ones are planned."""
    under_way: list[Future[None]] = []
    held: list[list[Any]] = [[] for _ in INPUT_FIELDS]

    def add(jobs: NewJobs) -> None:
        for column, more in zip(held, jobs.columns, strict=True):
            column.extend(more)
        while len(held[0]) >= _ADDED_AT_ONCE:
            send()

    def send() -> None:
        jobs = NewJobs([column[:_ADDED_AT_ONCE] for column in held])
        for column in held:
            del column[:_ADDED_AT_ONCE]
        wait()
        under_way.append(session.portal.start_task_soon(session.store.add, jobs))

    def wait() -> None:
        while under_way:
            under_way.pop().result()

    yield add
    if held[0]:
        send()
    wait()


def _restore_jobs(session: Session, known: RunSettings) -> None:
    session.wait(session.store.clear)
    with _adding(session) as add:
        for jobs in planned_jobs(session.folder.plan, session.maker.model, known.picture.format):
            add(jobs)
    session.wait(session.store.mark_planned)
