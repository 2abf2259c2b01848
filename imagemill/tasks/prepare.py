"""Prepares a run: its plan made or taken up again, its jobs in the store, images already there found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imagemill.bucket.image_bucket import MEDIA_TYPES, StoredImage, image_name
from imagemill.catalog.plan import Planner, planned_jobs, write_plan
from imagemill.cluster.log_parts import gather_parts
from imagemill.engine.receipt import Receipt
from imagemill.errors import InputError
from imagemill.jobs import INPUT_FIELDS, Job, JobStatus, NewJobs
from imagemill.runs.folder import PlanCounts
from imagemill.runs.log_replay import LastLine, catch_up, last_lines, was_unanswered
from imagemill.runs.session import Session, catalog_of, open_session
from imagemill.settings import RunSettings
from imagemill.stores import Shard, shards
from imagemill.tasks.verb import verb

_ADDED_AT_ONCE = 10_000
_LOOKED_UP_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is left to do: the plan's counts, shards of unfinished jobs, how many, and at what cost."""

    counts: PlanCounts
    shards: list[Shard]
    images: int
    cost_usd: float


@verb("prepare")
def prepare(settings: RunSettings) -> Prepared:
    """Plan the run, or take up the plan it has; then find out what is left to do.

    Raises:
        InputError: the catalog cannot be used, or the run's id belongs to another run.
    """
    with open_session(settings) as session:
        begun = session.folder.record.exists()
        counts = plan_run(session)
        session.folder.forget_summary()
        gather_parts(session.bucket, session.folder)
        upload_unsaved(session)
        unfinished = find_images(session, session.wait(session.store.unfinished_numbers), begun=begun)
        totals = session.wait(session.store.totals)
        session.recorder.begin(
            unique=counts.unique, done=totals.done, failed=totals.failed, cost_usd=totals.cost_usd
        )
        cost_usd = counts.cost_usd * len(unfinished) / counts.unique if counts.unique else 0.0
        return Prepared(counts, shards(unfinished, settings.execution.shard_size), len(unfinished), cost_usd)


def refuse_other_run(settings: RunSettings, known: RunSettings) -> None:
    """A run id stands for one catalog, one API and one place.

    Raises:
        InputError: the run of this id is another one.
    """
    given = settings.identity()
    for name, value in known.identity().items():
        if given[name] != value:
            raise InputError(
                f"Run {settings.run_id!r} exists with the {name} {value!r}, not {given[name]!r}: resume"
                " it with what it began with, or choose another run id."
            )


def plan_run(session: Session) -> PlanCounts:
    """Plan the run, its jobs into the store and its files into the bucket; or take up the plan it has."""
    settings, folder, store = session.settings, session.folder, session.store
    record = folder.read_record()
    if record is not None:
        known, counts = record
        refuse_other_run(settings, known)
        if not session.wait(store.is_planned):
            # Another machine's run, or a lost store: its jobs are all in the plan.
            _restore_jobs(session, known)
        return counts
    session.wait(store.clear)
    catalog = catalog_of(settings.catalog, settings.output)
    planner = Planner(session.api, settings.picture)
    with _adding(session) as add:
        counts = write_plan(planner, catalog, folder.plan, folder.rejected, add)
    session.wait(store.mark_planned)
    folder.write_record(settings, counts)
    folder.publish_plan(session.bucket)
    return counts


@contextmanager
def _adding(session: Session) -> Iterator[Callable[[NewJobs], None]]:
    """Adds jobs to the store, each ten thousand while the next ones are planned."""
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


def upload_unsaved(session: Session) -> None:
    """Bring images to the bucket that were paid for while it was away."""
    for image in session.folder.unsaved.glob("*.*"):
        extension = image.suffix[1:]
        session.bucket.upload(image, image_name(image.stem, extension), MEDIA_TYPES[extension])
        image.unlink()


def find_images(session: Session, numbers: Sequence[int], *, begun: bool) -> Sequence[int]:
    """Find out what became of each of these unfinished jobs.

    It was made by an earlier run, or just before a crash, or lost.

    An image in the bucket makes it done. In a run that has ``begun`` before, the image's receipt tells
    whether this run paid for it, where neither store nor log could. A request that was in flight when a
    process died, with nothing to ask about, is looked for in the API's list of requests; where it is not
    found, it is counted as unanswered: it will be sent again, and the API may charge both. Returns the
    numbers of the jobs that are unfinished then.
    """
    store = session.store
    images = session.bucket.images(job.key for jobs in _batches(session, numbers) for job in jobs)
    lines = last_lines(session.folder.log, numbers)
    if not images and not lines and not session.wait(store.totals).attempts:
        return numbers  # nothing was ever asked for

    async def save(jobs: list[Job]) -> None:
        for job in jobs:
            store.save(job)
        await store.commit()

    for jobs in _batches(session, numbers):
        doubtful_usd = sum(job.unanswered_usd for job in jobs)
        found = [images[job.key].name for job in jobs if begun and job.key in images]
        receipts = _receipts(session, found)
        changed = [
            job
            for job in jobs
            if _settle(session, job, images.get(job.key), receipts.get(job.key), lines.get(job.number))
        ]
        lost = [job for job in jobs if _is_lost(job)]
        if lost:
            session.wait(session.engine.find_lost, lost)
        session.cost.doubtful_usd += sum(job.unanswered_usd for job in jobs) - doubtful_usd
        if changed or lost:
            session.wait(save, list({job.number: job for job in (*changed, *lost)}.values()))
    return session.wait(store.unfinished_numbers) if images else numbers


def _is_lost(job: Job) -> bool:
    return job.status is JobStatus.PENDING and job.unanswered > 0 and job.request_id is None


def _receipts(session: Session, images: Sequence[str]) -> dict[str, Receipt]:
    """The receipts of this run's own images among these, by their key."""
    metadata = session.bucket.metadata(images)
    found = {carried.get("key", ""): Receipt.from_metadata(carried) for carried in metadata.values()}
    return {
        key: receipt
        for key, receipt in found.items()
        if receipt and receipt.run_id == session.settings.run_id
    }


def _batches(session: Session, numbers: Sequence[int]) -> Iterator[list[Job]]:
    """The unfinished jobs, never all at once."""
    for block in shards(numbers, _LOOKED_UP_AT_ONCE):
        yield session.wait(session.store.unfinished, *block)


def _settle(
    session: Session, job: Job, image: StoredImage | None, receipt: Receipt | None, line: LastLine | None
) -> bool:
    """Bring one unfinished job to where it stands; whether that changed it."""
    known_usd = job.cost_usd
    missed = catch_up(job, line)
    price = session.api.price_usd(job.width, job.height)
    if image is not None:
        if receipt is not None:
            receipt.settle(job)
        asked = job.attempts > 0  # then this run paid for it, and died before it could say so
        if asked and receipt is None and (missed or not job.cost_usd):
            job.cost_usd += price
        latency_s = receipt.latency_s if receipt is not None else None
        job.finish(
            time.time(), image=image.name, image_bytes=image.size, latency_s=latency_s, reused=not asked
        )
    elif missed:
        if was_unanswered(job, line):
            job.lose_answer(price)
        job.requeue()
    session.cost.spent_usd += job.cost_usd - known_usd
    return missed or image is not None
