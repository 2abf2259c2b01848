"""The job: one image to make, with all that is needed to make it, and where it stands.

A job's status changes in this module and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


TERMINAL = frozenset({JobStatus.DONE, JobStatus.FAILED})


@dataclass(slots=True)
class Job:
    """One image to make: self-contained, so that a retry recomputes nothing.

    ``number`` is the job's place in its run, from 0; a shard is a range of numbers. Times are Unix
    seconds, ``latency_s`` runs from the request sent to the image's bytes held, waiting for a slot
    excluded. ``cost_usd`` counts every image the API made for this job. ``image`` is the object's name
    below the output prefix. ``reused`` says the image was there before this run asked for it.
    """

    number: int
    id: str
    key: str
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    seed: int
    steps: int
    model: str
    format: str
    status: JobStatus = JobStatus.PENDING
    attempts: int = 0
    request_id: str | None = None
    image: str | None = None
    image_bytes: int | None = None
    reused: bool = False
    latency_s: float | None = None
    cost_usd: float = 0.0
    error_code: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    retryable: bool | None = None
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return max(0, self.attempts - 1)

    def start(self, at: float) -> None:
        """An attempt begins."""
        self._leave(JobStatus.PENDING, JobStatus.RUNNING)
        self.status = JobStatus.RUNNING
        self.attempts += 1
        if self.started_at is None:
            self.started_at = at

    def requeue(self) -> None:
        """The attempt was broken off by a stop; a resume takes the job up again."""
        self._leave(JobStatus.PENDING, JobStatus.RUNNING)
        self.status = JobStatus.PENDING

    def finish(
        self,
        at: float,
        *,
        image: str,
        image_bytes: int,
        latency_s: float | None,
        reused: bool = False,
    ) -> None:
        """The image is in the bucket."""
        self._leave(JobStatus.PENDING, JobStatus.RUNNING)
        self.status = JobStatus.DONE
        self.image, self.image_bytes, self.latency_s = image, image_bytes, latency_s
        self.reused = reused
        self.finished_at = at
        self.error_code = self.error_class = self.error_message = None
        self.retryable = None

    def fail(self, at: float, *, error_class: str, code: str, message: str, retryable: bool) -> None:
        """The job's budget for this class of error is spent."""
        self._leave(JobStatus.PENDING, JobStatus.RUNNING)
        self.status = JobStatus.FAILED
        self.error_class, self.error_code, self.error_message = error_class, code, message[:2000]
        self.retryable = retryable
        self.finished_at = at

    def reopen(self) -> None:
        """A failed job is to be tried again; what its attempts cost stays with it."""
        self._leave(JobStatus.FAILED)
        self.status = JobStatus.PENDING
        self.request_id = None
        self.error_class = self.error_code = self.error_message = None
        self.retryable = self.finished_at = None

    def _leave(self, *allowed: JobStatus) -> None:
        if self.status not in allowed:
            raise ValueError(f"job {self.number} is {self.status}: it cannot change so")


JOB_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Job))
"""The names of a job's fields, in order: the columns of every job store."""

INPUT_FIELDS = JOB_FIELDS[: JOB_FIELDS.index("status")]
"""The fields that never change once the job is planned."""

STATE_FIELDS = JOB_FIELDS[JOB_FIELDS.index("status") :]
"""The fields that a run writes."""
