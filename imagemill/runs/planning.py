"""Plans a run, once: its catalog becomes jobs in the store and a plan in the bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from imagemill.blocks.loading import resolved
from imagemill.catalog.access import catalog_of
from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.plan import Planner, planned_jobs, write_plan
from imagemill.errors import InputError
from imagemill.jobs import INPUT_FIELDS, NewJobs
from imagemill.runs.session import Session
from imagemill.settings import RunSettings

_ADDED_AT_ONCE = 10_000


def refuse_other_run(settings: RunSettings, known: RunSettings) -> None:
    """Check that a run id is not reused for a different catalog, API, model or output.

    Raises:
        InputError: the existing run has different ones.
    """
    if known.api.model is None:  # a record of an earlier version, which kept what it was given
        known = known.model_copy(update={"api": resolved(known.api)})
    given = settings.identity()
    for name, value in known.identity().items():
        if given[name] != value:
            raise InputError(
                f"Run {settings.run_id!r} exists with the {name} {value!r}, not {given[name]!r}. Resume it"
                f" with the same {name}, or choose another run id."
            )


def plan_run(session: Session) -> PlanCounts:
    """Plan the run, with its jobs in the store and its files in the bucket, or load its existing plan."""
    settings, folder, store = session.settings, session.folder, session.store
    record = folder.read_record()
    if record is not None:
        known, counts = record
        refuse_other_run(settings, known)
        if not session.wait(store.is_planned):
            # The run began on another machine, or its store was lost: restore the jobs from the plan.
            _restore_jobs(session, known)
        return counts
    session.wait(store.clear)
    catalog = session.catalog or catalog_of(settings.catalog, settings.output)
    planner = Planner(session.api, settings.picture)
    with _adding(session) as add:
        counts = write_plan(planner, catalog, folder.plan, folder.rejected, add)
    session.wait(store.mark_planned)
    folder.write_record(settings, counts)
    folder.publish_plan(session.bucket)
    return counts


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
        for jobs in planned_jobs(session.folder.plan, session.api.model, known.picture.format):
            add(jobs)
    session.wait(session.store.mark_planned)
