"""The job: one image to make, with all that is needed to make it, and where it stands.

A job's status changes in this module and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from typing import Any, overload

from imagemill.takes import REJECTED, is_rejected, rejected_name, seed_of, take_of
from imagemill.usd import plus


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class CostSource(StrEnum):
    """Where the cost of an image is from, from the surest to the least sure."""

    TOLD = "told"
    """The API said what it charged."""
    LIST = "list"
    """The account's own price, or the list price."""
    UNKNOWN = "unknown"
    """Neither is known: the cost counts as nothing."""

    @classmethod
    def of_total(cls, sources: Iterable[str]) -> CostSource | None:
        """Where a sum is from: as sure as the least sure of its parts; None for no parts."""
        known = [cls(source) for source in sources if source]
        return max(known, key=list(cls).index, default=None)


KEPT = "kept"
"""In place of a job's verdicts: a person looked at its picture, and it is right."""

_LISTED, _LOST = "listed:", "lost: "
"""In a job's ``earlier``, before the id of a request that an API's list told of, and for a lost machine."""

PLACEHOLDER = "placeholder"
"""The verdict on a file that no model made: it is no picture."""

TERMINAL = frozenset({JobStatus.DONE, JobStatus.FAILED})


def next_take(status: str, image: str | None) -> int:
    """See :attr:`Job.take`: which take the picture of a job with this status and image is."""
    return 1 if image is None else take_of(image) + (status not in TERMINAL)


def has_picture(status: str, image: str | None, suspect: str) -> bool:
    """See :attr:`Job.has_picture`: whether a job with these fields has a picture."""
    is_placeholder = status not in TERMINAL and suspect == PLACEHOLDER
    return image is not None and not is_rejected(image) and not is_placeholder


@dataclass(slots=True)
class Job:
    """One image to make: self-contained, so that a retry recomputes nothing.

    ``number`` is the job's place in its run, from 0; a shard is a range of numbers. Times are Unix seconds,
    ``latency_s`` runs from the request sent to the image's bytes held, waiting for a slot excluded, here or
    in the vendor's queue; ``queued_s`` is the time in that queue. Both are None where an earlier process sent
    the request. ``params`` are further fields for the model, as JSON with sorted names, "" for none.
    ``variant`` numbers a row's pictures from 1, ``varied`` is what they were varied in, as JSON, "" for
    nothing. ``cost_usd`` counts every image the API made for this job, ``cost_source`` how that is known (""
    while nothing is charged); ``unanswered`` its requests whose answer never came or could not be read, and
    ``unanswered_usd`` what the API may have charged for them. A job that failed while the API kept its
    request still has its ``request_id``. ``image`` is the object's name below the output prefix. ``reused``
    says the image was there before this run asked. ``quality`` holds the picture's measures and the judge's
    opinion as JSON, "" where there are none; ``suspect`` the verdicts, with commas. ``judge_usd`` is what the
    judge cost, which ``cost_usd`` does not count. ``route`` names the route that its latest request took, ""
    in a run over one; ``model`` is that route's while the job is worked on, and in the plan of such a run the
    family. ``earlier`` is what is known of its earlier requests, one a line: the ids of those that ended, so
    that none is taken for a lost one, and which lost machines' requests are counted.
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
    unanswered: int = 0
    unanswered_usd: float = 0.0
    error_code: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    retryable: bool | None = None
    started_at: float | None = None
    finished_at: float | None = None
    # New fields go last: stores made by earlier versions hold the fields before them in this order.
    params: str = ""
    cost_source: str = ""
    queued_s: float | None = None
    variant: int = 1
    varied: str = ""
    quality: str = ""
    suspect: str = ""
    judge_usd: float = 0.0
    route: str = ""
    earlier: str = ""

    @property
    def request_ids(self) -> set[str]:
        """The ids of requests that ended, or that a list told of."""
        lines = self.earlier.splitlines()
        return {line.removeprefix(_LISTED) for line in lines if not line.startswith(_LOST)}

    @property
    def is_listed(self) -> bool:
        """Whether an API's list told of its request, in place of a lost one: it may be another run's."""
        listed = f"{_LISTED}{_without_spaces(self.request_id or '')}"
        return self.request_id is not None and listed in self.earlier.splitlines()

    @property
    def lost_machines(self) -> dict[str, int]:
        """The lost machines that are counted, by the time since when each may have sent a request.

        With the job's attempts as of then.
        """
        lines = [line.split() for line in self.earlier.splitlines() if line.startswith(_LOST)]
        return {since: int(attempts) for _, since, attempts in lines}

    @property
    def total_usd(self) -> float:
        """What the job cost: its images, and the judge."""
        return plus(self.cost_usd, self.judge_usd)

    @property
    def take(self) -> int:
        """Which take the job's picture is; of an unfinished job, the one that its next request makes."""
        return next_take(self.status, self.image)

    @property
    def take_seed(self) -> int:
        """The seed of that take; ``seed`` is that of the first."""
        return seed_of(self.seed, self.take)

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture, be it one that is to be made anew; a placeholder is none."""
        return has_picture(self.status, self.image, self.suspect)

    @property
    def is_rejected(self) -> bool:
        """Whether a person rejected the picture in a review: the job failed, though nothing went wrong."""
        return self.status is JobStatus.FAILED and self.error_code == REJECTED

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

    def pay(self, usd: float, source: str) -> None:
        """The API charges for an image it made."""
        self.cost_usd = plus(self.cost_usd, usd)
        self.cost_source = CostSource.of_total([self.cost_source, source]) or ""

    def lose_answer(self, price_usd: float) -> None:
        """The answer to a request never came, and nothing is kept to ask about: it may be charged."""
        self.unanswered += 1
        self.unanswered_usd = plus(self.unanswered_usd, price_usd)

    def accept(self, request_id: str) -> None:
        """The API has a request of this id; one that it had before is over."""
        if self.request_id != request_id:
            self.drop_request()
        self.request_id = request_id

    def drop_request(self) -> None:
        """The request is over, or nobody will ask about it any more."""
        if self.request_id is not None:
            self.note_ended([self.request_id])
        self.request_id = None

    def note_ended(self, request_ids: Iterable[str]) -> bool:
        """Keep the ids of requests that are over; whether any is new."""
        new = {_without_spaces(request_id) for request_id in request_ids} - self.request_ids
        self.earlier = "\n".join([*self.earlier.splitlines(), *sorted(new)])
        return bool(new)

    def note_lost(self, since: Iterable[str]) -> None:
        """What these lost machines may have sent is counted, if it is not known."""
        counted = self.lost_machines
        new = [machine for machine in since if machine not in counted]
        lines = [f"{_LOST}{machine} {self.attempts}" for machine in new]
        self.earlier = "\n".join([*self.earlier.splitlines(), *lines])

    def find_request(self, request_id: str, price_usd: float, *, listed: bool = False) -> None:
        """A request whose answer never came is found at the API: it is asked about, not sent again.

        ``listed``: it is in the API's list, and asks for the same.
        """
        self.request_id = request_id
        if listed:
            self.note_ended([f"{_LISTED}{request_id}"])
        if self.unanswered:
            self.unanswered -= 1
            left_usd = max(0.0, plus(self.unanswered_usd, -price_usd))
            self.unanswered_usd = left_usd if self.unanswered else 0.0  # its route may be no dear one

    def requeue(self) -> None:
        """The attempt brought no picture: another one follows, be it after a resume."""
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

    def reopen(self, doubtful_usd: float | None = None) -> None:
        """A failed job is to be tried again; what its attempts cost stays with it.

        A request that the API kept is asked about first: what it may have charged is in doubt no more, but
        for one that is paid for, which has no doubt.
        """
        self._leave(JobStatus.FAILED)
        self.status = JobStatus.PENDING
        if self.request_id is not None and doubtful_usd is not None:
            self.find_request(self.request_id, doubtful_usd)
        self.error_class = self.error_code = self.error_message = None
        self.retryable = self.finished_at = None

    def redo(self) -> None:
        """Another picture is wanted in place of the one there is; what that one cost stays with the job."""
        self._leave(JobStatus.DONE, JobStatus.FAILED)
        self.status = JobStatus.PENDING
        self.drop_request()  # asked about again, it would bring the same picture
        self.error_class = self.error_code = self.error_message = None
        self.retryable = self.finished_at = None

    def reject(self, at: float, *, error_class: str) -> None:
        """A person does not want the picture: the job failed, and a later take takes its place, if any."""
        self._leave(JobStatus.DONE)
        words = f" ({self.suspect})" if self.suspect else ""
        self.image = rejected_name(self.image or "")
        self.status, self.retryable, self.finished_at = JobStatus.FAILED, False, at
        self.error_class, self.error_code = error_class, REJECTED
        self.error_message = f"rejected in a review{words}"
        self.image_bytes, self.suspect, self.reused = None, "", False

    def _leave(self, *allowed: JobStatus) -> None:
        if self.status not in allowed:
            raise ValueError(f"job {self.number} is {self.status}: it cannot change so")


def _without_spaces(request_id: str) -> str:
    """An id as ``earlier`` has it: an API may send any text, and none of it may end a line."""
    return "".join(request_id.split())


JOB_FIELDS: tuple[str, ...] = tuple(field.name for field in fields(Job))
"""The names of a job's fields, in order: the columns of every job store."""

INPUT_FIELDS = (*JOB_FIELDS[: JOB_FIELDS.index("status")], "params", "variant", "varied")
"""The fields that never change once the job is planned."""

STATE_FIELDS = tuple(name for name in JOB_FIELDS if name not in INPUT_FIELDS)
"""The fields that a run writes."""

FRESH_STATE: tuple[Any, ...] = tuple(field.default for field in fields(Job) if field.name in STATE_FIELDS)
"""The state fields of a job that nobody has touched yet."""

_input_of = attrgetter(*INPUT_FIELDS)


class NewJobs(Sequence[Job]):
    """Jobs that nobody has touched yet, kept as columns: a million pass by without becoming objects.

    ``columns`` are those of ``INPUT_FIELDS``, in that order.
    """

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> NewJobs:
        """The input of these jobs; themselves, if they are such a batch already."""
        if isinstance(jobs, cls):
            return jobs
        return cls(list(zip(*map(_input_of, jobs), strict=True)) or [()] * len(INPUT_FIELDS))

    def column(self, name: str) -> Sequence[Any]:
        """One field of all of them."""
        return self.columns[INPUT_FIELDS.index(name)]

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, index: int) -> Job: ...

    @overload
    def __getitem__(self, index: slice) -> NewJobs: ...

    def __getitem__(self, index: int | slice) -> Job | NewJobs:
        if isinstance(index, slice):
            return NewJobs([column[index] for column in self.columns])
        return Job(**{name: column[index] for name, column in zip(INPUT_FIELDS, self.columns, strict=True)})

    def __iter__(self) -> Iterator[Job]:
        return (Job(**dict(zip(INPUT_FIELDS, row, strict=True))) for row in zip(*self.columns, strict=True))
