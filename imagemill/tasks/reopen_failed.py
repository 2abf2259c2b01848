"""Reopens failed jobs of a run, so that they are retried under the same run id."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest_guard import refuse_older_run
from imagemill.jobs import Job, JobStatus
from imagemill.runs.log_replay import LastLine, last_lines
from imagemill.runs.planning import newer_than
from imagemill.runs.session import Session
from imagemill.runs.user_errors import without_secrets_in_errors


@task(name="reopen-failed", task_run_name="reopen-failed", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def reopen_failed(session: Session, *, permanent: bool, prepared: bool = False) -> int:
    """Make a run's retryable failures pending again, and the permanent ones too if asked; how many.

    Attempts and costs stay with a job, and its history stays in log.jsonl. A store that a power cut put back
    may call a job failed of which the log has a later attempt: that line stays the last one, which the
    recovery reads. Once the run is ``prepared``, what pending jobs' requests may cost is counted: those of
    these jobs are then counted here.

    Raises:
        InputError: the run is older than the manifest, which asks for other pictures.
    """
    newer = newer_than(session)
    if newer is not None and not newer.wants_all:
        refuse_older_run(session.bucket.uri, session.settings.run_id, newer.run_id)

    def is_wanted(job: Job) -> bool:
        return job.status is JobStatus.FAILED and (job.retryable is True or permanent)

    async def reopen() -> int:
        reopened = 0
        lines: dict[int, LastLine] = {}
        if not prepared:  # else the recovery has read them
            failed = [job.number async for jobs in session.store.all_jobs() for job in jobs if is_wanted(job)]
            lines = last_lines(session.folder.log, failed) if failed else {}
        async for jobs in session.store.all_jobs():
            for job in filter(is_wanted, jobs):
                line = lines.get(job.number)
                session.engine.reopen(job, is_new=line is None or line.attempt <= job.attempts)
                session.store.save(job)
                reopened += 1
                if prepared and job.request_id is not None:
                    session.engine.expect([job])
            await session.store.commit()
        return reopened

    return session.wait(reopen)
