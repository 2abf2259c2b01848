"""Reopens failed jobs of a run, so that they are tried again under the same run id."""

from __future__ import annotations

from imagemill.jobs import Job, JobStatus
from imagemill.runs.session import Session, open_session
from imagemill.settings import RunSettings
from imagemill.tasks.verb import verb


@verb("reopen-failed")
def reopen_failed(settings: RunSettings, *, permanent: bool) -> int:
    """Make a run's retryable failures pending again, and the permanent ones too if asked; how many.

    Attempts and costs stay with a job, and its history stays in log.jsonl.
    """
    with open_session(settings) as session:
        return session.wait(_reopen, session, permanent)


async def _reopen(session: Session, permanent: bool) -> int:  # noqa: FBT001 - passed on as it came
    reopened = 0
    async for jobs in session.store.all_jobs():
        for job in jobs:
            if job.status is JobStatus.FAILED and (job.retryable or permanent):
                _reopen_job(session, job)
                reopened += 1
        await session.store.commit()
    return reopened


def _reopen_job(session: Session, job: Job) -> None:
    session.recorder.reopened(job)
    job.reopen()
    session.store.save(job)
