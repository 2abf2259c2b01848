"""What a process that died still told its log, and could not tell its job store any more.

A line of log.jsonl is written at once, a job's state with the next batch: up to two seconds later in the
memory store's checkpoint. A resume therefore reads the last line of each unfinished job. So it knows every
request id that was answered, every request that was not, and what was paid. A power cut may lose lines, and
another machine has none of them: then the store's word stands, and the receipts of the images that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from imagemill.jobs import Job, JobStatus

_NUMBER = re.compile(rb'"job":([0-9]+)')
_EVENTS = frozenset({"sent", "accepted", "attempt_failed", "done", "failed"})


@dataclass(frozen=True, slots=True)
class LastLine:
    """The last that a log says of a job. Costs in USD; None where the line does not say."""

    event: str
    attempt: int
    request_id: str | None
    cost_usd: float | None
    unanswered: int | None
    unanswered_usd: float | None


def last_lines(log: Path, jobs: Iterable[int]) -> dict[int, LastLine]:
    """The last line of each of these jobs, by its number; jobs that were never sent have none."""
    wanted = set(jobs)
    found: dict[int, LastLine] = {}
    if not wanted or not log.exists():
        return found
    with log.open("rb") as lines:
        for text in lines:
            number = _NUMBER.search(text)
            if number is None or int(number[1]) not in wanted:
                continue  # most lines of a run that is nearly done; to parse them costs ten times as much
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue  # a line that a kill cut short
            if line.get("job") in wanted and line["event"] in _EVENTS:
                found[line["job"]] = LastLine(
                    line["event"],
                    line["attempt"],
                    line["request_id"],
                    line.get("cost_usd"),
                    line.get("unanswered"),
                    line.get("unanswered_usd"),
                )
    return found


def catch_up(job: Job, line: LastLine | None) -> bool:
    """Bring a job to where its last line leaves it; whether the store had missed anything of it."""
    if line is None or line.attempt < job.attempts:
        return job.status is JobStatus.RUNNING
    if line.attempt == job.attempts and job.status is not JobStatus.RUNNING:
        return False  # the process left it in order
    answered = line.event == "attempt_failed"  # then the line knows whether the API still has the request
    kept = job.request_id if line.attempt == job.attempts and not answered else None
    job.attempts, job.request_id = line.attempt, line.request_id or kept
    job.cost_usd = max(job.cost_usd, line.cost_usd or 0.0)
    job.unanswered = max(job.unanswered, line.unanswered or 0)
    job.unanswered_usd = max(job.unanswered_usd, line.unanswered_usd or 0.0)
    return True


def was_unanswered(job: Job, line: LastLine | None) -> bool:
    """Whether a job that missed something was left with a request in flight and nothing to ask about."""
    asked = line is None or line.attempt < job.attempts or line.event == "sent"
    return asked and job.request_id is None
