"""Applies the choices of a review: pictures that are kept, made anew or rejected."""

from __future__ import annotations

import time
from collections import Counter

import anyio
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest_guard import NewerRun, pictures_in_use, refuse_older_run
from imagemill.errors import ErrorClass
from imagemill.jobs import KEPT, TERMINAL, Job, JobStatus
from imagemill.runs.log_replay import last_lines
from imagemill.runs.recovery import tell_refusals
from imagemill.runs.review_choices import ReviewChoices
from imagemill.runs.session import Session
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.takes import picture_of, rejected_name

_WRITES_AT_ONCE = 16


@task(name="apply-choices", task_run_name="apply-choices", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def apply_choices(session: Session, choices: ReviewChoices) -> dict[str, int]:
    """Apply the choices to the run's jobs; how many pictures each changed.

    A choice for a picture that has been made anew or rejected since changes nothing: neither does the same
    choice a second time. A rejected picture is marked in the bucket before its job, so that no later run
    uses it.

    Raises:
        StoreUnavailableError: the bucket or the job store is unavailable.
    """
    chosen = choices.by_picture
    writes, redone = anyio.Semaphore(_WRITES_AT_ONCE), list[Job]()

    async def reject(job: Job) -> None:
        async with writes:
            await session.bucket.put_rejection(rejected_name(job.image or ""), session.settings.run_id)
        job.reject(time.time(), error_class=ErrorClass.CONTENT_FILTERED)
        session.recorder.rejected(job)
        session.store.save(job)

    async def apply() -> dict[str, int]:
        changed: Counter[str] = Counter()
        async for jobs in session.store.all_jobs():
            found = [(job, chosen.get(picture_of(job.image))) for job in jobs if job.image is not None]
            async with anyio.create_task_group() as group:
                for job, choice in found:
                    is_done = job.status is JobStatus.DONE
                    if choice == "keep" and is_done and job.suspect != KEPT:
                        job.suspect = KEPT
                        session.recorder.kept(job)
                        session.store.save(job)
                    elif choice == "redo" and (is_done or job.is_rejected):
                        session.recorder.redo(job)
                        job.redo()
                        session.store.save(job)
                        redone.append(job)
                    elif choice == "reject" and is_done:
                        group.start_soon(reject, job)
                    else:
                        continue
                    changed[choice] += 1
            await session.store.commit()
        return dict(changed)

    changed = session.wait(apply)
    if redone:
        tell_refusals(session, redone, last_lines(session.folder.log, [job.number for job in redone]))
    rest = len(chosen) - sum(changed.values())
    get_run_logger().info(
        "%s pictures kept, %s to be made anew, %s rejected; %s choices change nothing.",
        *(f"{changed.get(name, 0):,}" for name in ("keep", "redo", "reject")),
        f"{rest:,}",
    )
    return changed


def choices_in_use(session: Session, choices: ReviewChoices, newer: NewerRun) -> ReviewChoices:
    """The choices for pictures that are in the manifest still, which a ``newer`` run has published.

    Raises:
        InputError: the run has unfinished jobs that would be bought as well.
    """
    in_use = choices.only(pictures_in_use(session.bucket, choices.by_picture.keys()))
    redone = {name.partition(".")[0] for name in in_use.redo}

    async def is_ready() -> bool:
        return all(
            [
                job.status in TERMINAL or job.key in redone
                async for jobs in session.store.all_jobs()
                for job in jobs
            ]
        )

    if not newer.wants_all and not session.wait(is_ready):
        refuse_older_run(session.bucket.uri, session.settings.run_id, newer.run_id)
    return in_use
