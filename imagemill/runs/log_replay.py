"""Recovers what a killed process wrote to its log but not yet to its job store.

A line of log.jsonl is written immediately, a job's state with the next batch: up to two seconds later in the
memory store's checkpoint. A resume therefore reads the last line of each unfinished job, and so knows every
request id that was received, every request that was not answered, and what was paid. Another machine has the
lines that were uploaded, and they name the jobs that may have been sent after them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from imagemill.blocks.apis.generated_image import PAID
from imagemill.engine.job_log import CUT, UP_NEXT, lines_with, pieces
from imagemill.errors import NOT_TAKEN, ErrorClass
from imagemill.jobs import CostSource, Job, JobStatus
from imagemill.quality.judge import Answer, opinion_of
from imagemill.runs.route_costs import RouteCosts

_NUMBER = re.compile(rb'"job":([0-9]{1,18})\b')
_PLACEHOLDER = b'"event":"placeholder"'
_ATTEMPT_FAILED = b'"event":"attempt_failed"'
_REOPENED = b'"event":"reopened"'
_CUT, _UP_NEXT = (f'"event":"{name}"'.encode() for name in (CUT, UP_NEXT))
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{32})"')
_NOT_SENT = {"connection", "timeout"}
"""Error codes of an attempt without a request id that never left, where the client names requests."""

_Usd = Annotated[float, Field(ge=0, lt=1e6)]


@dataclass(slots=True)
class LastLine:
    """The last log line about a job. Costs are in USD; None if no line has the field.

    ``request_ids`` are those of all lines about the job, ``refused`` the attempts that an API did not take or
    never got, with their routes, ``answers`` the judge's, by the attempt whose picture it was asked about.
    ``begun_at`` is when the job's first line was written, ``costs`` what the lines say of each route's;
    ``is_cut``: a machine was lost after it, and further lines with it.
    """

    job: int
    at: datetime
    event: Literal["sent", "accepted", "attempt_failed", "judged", "done", "failed", "reopened", "given_up"]
    attempt: Annotated[int, Field(ge=0, le=1_000_000)]
    request_id: str | None = None
    cost_usd: _Usd | None = None
    unanswered: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    unanswered_usd: _Usd | None = None
    cost_source: CostSource | Literal[""] | None = None
    error_class: ErrorClass | None = None
    error_code: str | None = None
    message: str | None = None
    retryable: bool | None = None
    judge_usd: _Usd | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    words: str | None = None
    failure: str | None = None
    route: str = ""
    quality: str = ""
    suspect: str = ""
    begun_at: datetime | None = field(default=None, init=False)
    request_ids: set[str] = field(default_factory=set, init=False)
    refused: dict[int, str] = field(default_factory=dict, init=False)
    answers: dict[int, Answer] = field(default_factory=dict, init=False)
    costs: RouteCosts = field(default_factory=RouteCosts, init=False)
    is_cut: bool = field(default=False, init=False)

    def note(self, before: LastLine | None) -> None:
        """Collect what all lines up to this one hold."""
        self.begun_at = self.at if before is None else before.begun_at
        if before is not None:
            for name in _SUMS:  # they stand where the next line names none
                if getattr(self, name) is None:
                    setattr(self, name, getattr(before, name))
            self.request_ids.update(before.request_ids)
            self.refused.update(before.refused)
            self.answers.update(before.answers)
        if self.request_id:
            self.request_ids.add(self.request_id)
        is_refused = self.error_class in NOT_TAKEN or self.error_code in _NOT_SENT
        if is_refused and self.event == "attempt_failed" and self.request_id is None:
            self.refused[self.attempt] = self.route  # else it was a look at one that the API has
            if before is not None and before.attempt == self.attempt:
                self.request_ids.discard(before.request_id or "")  # the next one may have the same
        if self.event == "judged":
            opinion = None if self.score is None else opinion_of(self.score, self.words)
            self.answers[self.attempt] = Answer(opinion, self.failure or "")
        sums = self.cost_usd or 0.0, self.unanswered_usd or 0.0, self.unanswered or 0
        if self.event != "sent":
            self.costs = (before.costs if before else self.costs).at(
                *sums, charged_by=self.route, doubtful_at=self.route
            )
        elif before is None:
            self.costs = self.costs.at(*sums, charged_by=self.route, doubtful_at=None)
        else:  # to send costs nothing yet: what it has come to was before
            self.costs = before.costs.at(*sums, charged_by=before.route, doubtful_at=before.next_doubt_at)

    @property
    def has_failed(self) -> bool:
        """Whether the job has failed; a prompt that the API refused has, also without the last line."""
        refused = self.event == "attempt_failed" and self.error_class is ErrorClass.CONTENT_FILTERED
        return refused or self.event == "failed"

    @property
    def is_in_doubt(self) -> bool:
        """Whether a request was sent, and nothing is known of it since: not even an id to ask about."""
        return self.event == "sent" and self.request_id is None

    @property
    def next_doubt_at(self) -> str | None:
        """The route of a request that came into doubt after this line; None where it may be any.

        After a failed attempt the next may have gone anywhere, and its line been lost with a machine; so may
        the line of that failure.
        """
        return None if self.is_cut or self.event in {"attempt_failed", "failed", "reopened"} else self.route


@dataclass(frozen=True, slots=True)
class _Named:
    """The jobs that were named as the next ones."""

    at: datetime
    jobs: list[int]


@dataclass(frozen=True, slots=True)
class _Retry:
    """An attempt that failed, and when a retry was due."""

    at: datetime
    retry_in_s: float | None = None


_LINE, _NAMED, _RETRY = TypeAdapter(LastLine), TypeAdapter(_Named), TypeAdapter(_Retry)
_SUMS = ("cost_usd", "cost_source", "unanswered", "unanswered_usd", "judge_usd")


def last_lines(log: Path, jobs: Iterable[int]) -> dict[int, LastLine]:
    """The last line of each of these jobs, by number; jobs that were never sent have none."""
    wanted: set[bytes] = set()
    found: dict[int, LastLine] = {}
    for piece in pieces(log):
        numbers = _NUMBER.findall(piece)
        if numbers and not wanted:
            wanted = {b"%d" % job for job in jobs}
        is_cut = _CUT in piece
        if wanted.isdisjoint(numbers) and not is_cut:
            continue  # most of the log of a run that is nearly done
        for text in piece.splitlines():
            if is_cut and _CUT in text:
                for last in found.values():
                    last.is_cut = True
            number = _NUMBER.search(text)
            if number is None or number[1] not in wanted:
                continue
            if (event := _read(text)) is None:
                continue
            event.note(found.get(event.job))
            if b"%d" % event.job in wanted:
                found[event.job] = event
    return found


def _read(text: bytes) -> LastLine | None:
    """A line about a job; None if it is of another event, damaged, or cut short by a kill."""
    try:
        return _LINE.validate_python(orjson.loads(text))
    except (orjson.JSONDecodeError, ValidationError):
        return None


def perhaps_sent(log: Path) -> dict[int, list[datetime]]:
    """The jobs that processes may have sent after the last line that they could upload, by number.

    Each has a time for each process: the one since when. They are those that it had named as the next ones
    and of which it wrote no line since, and those whose retry was due. A job that a later process has taken
    up is not among them: its lines count what was in doubt, but for the one that reopens it.
    """
    found: dict[int, list[datetime]] = {}
    if not holds(log, _CUT):
        return found
    retries: dict[int, datetime] = {}
    up_next: dict[int, datetime] = {}
    for text in chain.from_iterable(piece.splitlines() for piece in pieces(log)):
        if _CUT in text:
            for job, at in (retries | up_next).items():
                found.setdefault(job, []).append(at)
            retries, up_next = {}, {}
        elif _UP_NEXT in text:
            with contextlib.suppress(ValidationError):
                named = _NAMED.validate_json(text)
                up_next = dict.fromkeys(named.jobs, named.at)
        elif _REOPENED not in text and (number := _NUMBER.search(text)):
            job = int(number[1])
            for since in (found, retries, up_next):
                since.pop(job, None)
            if _ATTEMPT_FAILED in text:
                with contextlib.suppress(ValidationError):
                    failed = _RETRY.validate_json(text)
                    if failed.retry_in_s is not None:
                        retries[job] = failed.at
    return found


def holds(log: Path, text: bytes) -> bool:
    """Whether this text, of a line or less, is anywhere in the log."""
    return any(text in piece for piece in pieces(log))


def known_placeholders(log: Path) -> set[str]:
    """The digests of the placeholders that the run has found."""
    digests = (_DIGEST.search(line) for line in lines_with(log, _PLACEHOLDER))
    return {digest[1].decode() for digest in digests if digest}


def catch_up(job: Job, line: LastLine | None) -> bool:
    """Update a job from its last line; whether the store had missed anything."""
    if line is None or line.attempt < job.attempts:
        return job.status is JobStatus.RUNNING
    if line.attempt == job.attempts and job.status is not JobStatus.RUNNING:
        return False  # the store is up to date
    answered = line.event in {"attempt_failed", "failed", "given_up"}  # whether the API still has it
    # Another machine, which took this one for lost, has found it in the API's list.
    is_anothers = job.is_listed and job.request_id not in line.request_ids
    kept = job.request_id if is_anothers or (line.attempt == job.attempts and not answered) else None
    request_id = line.request_id or kept
    if kept is not None and kept == f"{PAID}{request_id}":
        request_id = kept  # booked already: a power cut has taken the line that said so
    job.attempts, job.request_id = line.attempt, request_id
    job.route = line.route or job.route
    if job.started_at is None and line.begun_at is not None:
        job.started_at = line.begun_at.timestamp()
    job.cost_usd = max(job.cost_usd, line.cost_usd or 0.0)
    job.cost_source = CostSource.of_total([job.cost_source, line.cost_source or ""]) or ""
    job.judge_usd = max(job.judge_usd, line.judge_usd or 0.0)
    job.unanswered = max(job.unanswered, line.unanswered or 0)
    job.unanswered_usd = max(job.unanswered_usd, line.unanswered_usd or 0.0)
    return True


def costs_of(job: Job, line: LastLine | None) -> RouteCosts:
    """What a job has cost at each route, by its sums in the store and its last line in the log."""
    if line is None or (job.attempts <= 1 and not job.unanswered):  # it has been at one route only
        at = None if job.unanswered and not job.attempts else job.route
        before = RouteCosts()
    else:
        at, before = job.route if job.attempts > line.attempt else line.next_doubt_at, line.costs
    return before.at(job.cost_usd, job.unanswered_usd, job.unanswered, charged_by=job.route, doubtful_at=at)


def was_unanswered(job: Job, line: LastLine | None) -> bool:
    """Whether the job had a request in flight that cannot be looked up."""
    asked = line is None or line.attempt < job.attempts or line.event == "sent"
    return asked and job.request_id is None
