"""Past and current runs and their jobs, read from the runs' folders on this machine or from a bucket.

Nothing here loads Prefect, which would make a listing of runs take seconds.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagemill.engine.job_log import is_worked_on
from imagemill.errors import InputError
from imagemill.formatting import cut
from imagemill.runs.folder import RunFolder, home
from imagemill.runs.summary import RunSummary
from imagemill.settings import RUN_ID

if TYPE_CHECKING:
    from imagemill.bucket.image_bucket import ImageBucket

_AT_ONCE = 16


class KnownRun(BaseModel):
    """A run in one line. Costs are in USD; None means unknown."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    state: str = Field(description="done, failures, stopped, running, or unfinished (it was killed).")
    planned_at: str | None
    catalog: str | None
    provider: str | None
    output: str | None
    rows: int | None
    unique: int | None
    done: int
    failed: int
    pending: int | None
    cost_usd: float | None
    images_per_minute: float | None


class Attempt(BaseModel):
    """A failed attempt."""

    model_config = ConfigDict(extra="ignore")

    at: str
    attempt: int
    error_class: str
    error_code: str | None = None
    message: str | None = None
    retry_in_s: float | None = None
    request_id: str | None = None


class JobStory(BaseModel):
    """What happened to one catalog row. ``message`` is the API's message, or why the row was rejected."""

    id: str
    status: str = "pending"
    job: int | None = None
    key: str | None = None
    error_class: str | None = None
    error_code: str | None = None
    message: str | None = None
    retryable: bool | None = None
    attempts: int = 0
    request_id: str | None = None
    latency_s: float | None = None
    image: str | None = None
    prompt: str | None = None
    history: list[Attempt] = Field(default_factory=list, description="The failed attempts, in order.")


class RunRecords(ABC):
    """A place that has the records of runs."""

    @abstractmethod
    def run_ids(self) -> list[str]:
        """The ids of all runs."""

    @abstractmethod
    def read(self, run_id: str, name: str) -> bytes | None:
        """The content of a run's file, or None."""

    def lines(self, run_id: str) -> Iterator[bytes]:
        """The lines of a run's log."""
        return iter((self.read(run_id, "log.jsonl") or b"").splitlines())

    def is_running(self, run_id: str) -> bool:  # noqa: ARG002 - a bucket cannot tell
        """Whether a process is working on the run, if that can be seen from here."""
        return False


class LocalRecords(RunRecords):
    """The records that runs keep on this machine."""

    def run_ids(self) -> list[str]:
        return sorted(path.parent.name for path in home().glob("runs/*/run.json"))

    def read(self, run_id: str, name: str) -> bytes | None:
        try:
            return (RunFolder(run_id).path / name).read_bytes()
        except FileNotFoundError:
            return None

    def lines(self, run_id: str) -> Iterator[bytes]:
        try:
            with RunFolder(run_id).log.open("rb") as log:
                yield from log
        except FileNotFoundError:
            return

    def is_running(self, run_id: str) -> bool:
        return is_worked_on(RunFolder(run_id).log)


class BucketRecords(RunRecords):
    """The records that runs published to a bucket."""

    def __init__(self, bucket: ImageBucket) -> None:
        self._bucket = bucket

    def run_ids(self) -> list[str]:
        parts = [found.name.split("/") for found in self._bucket.objects("runs")]
        return sorted(part[1] for part in parts if len(part) == 3 and part[2] == "run.json")

    def read(self, run_id: str, name: str) -> bytes | None:
        return self._bucket.read(f"runs/{run_id}/{name}")

    def lines(self, run_id: str) -> Iterator[bytes]:
        from imagemill.runs.log_parts import published_lines  # noqa: PLC0415 - needs a bucket's libraries

        return published_lines(self._bucket, run_id)


def known_runs(records: RunRecords) -> list[KnownRun]:
    """All runs, latest first."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        runs = list(threads.map(lambda run_id: _known(records, run_id), records.run_ids()))
    return sorted(runs, key=lambda run: (run.planned_at or "", run.run_id), reverse=True)


def known_run(records: RunRecords, run_id: str) -> tuple[KnownRun, RunSummary | None]:
    """One run, and its summary if it has one.

    Raises:
        InputError: there is no such run.
    """
    if not RUN_ID.fullmatch(run_id) or records.read(run_id, "run.json") is None:
        raise InputError(f"There is no run {run_id!r} here. 'imagemill runs' lists the runs there are.")
    return _known(records, run_id), _summary(records, run_id)


def failed_jobs(records: RunRecords, run_id: str) -> list[JobStory]:
    """The failed jobs of a run and their errors, in the catalog's order.

    Raises:
        InputError: a file of the run is damaged.
    """
    events = (b"attempt_failed", b"failed", b"reopened")
    stories = _stories(_events(records.lines(run_id), events), lambda _: True)
    failed = {number: story for number, story in stories.items() if story.status == "failed"}
    if _summary(records, run_id) is not None:
        # Failures on other machines are not in our log, but in failed.parquet.
        for row in _rows(records, run_id, "failed.parquet"):
            if row["number"] not in failed:
                failed[row["number"]] = _failed(row)
    return [failed[number] for number in sorted(failed)]


def job_story(records: RunRecords, run_id: str, row_id: str) -> JobStory:
    """What happened to the catalog row with this id.

    Raises:
        InputError: the catalog had no such row, or a file of the run is damaged.
    """
    planned = _rows(records, run_id, "plan.parquet", ("id", "=", row_id))
    if not planned:
        raise InputError(f"The catalog of run {run_id!r} had no row with the id {row_id!r}.")
    row = planned[0]
    if row["job"] is None:
        return JobStory(id=row_id, status="rejected", message=row["reason"], prompt=row["prompt"])
    # The job of a duplicate has the id of the first row with that picture.
    number: int = row["job"]
    events = (b"attempt_failed", b"failed", b"reopened", b"done")
    stories = _stories(_events(records.lines(run_id), events), lambda event: event["job"] == number)
    story = stories.get(number)
    if story is None:
        failures = _rows(records, run_id, "failed.parquet", ("number", "=", number))
        jobs = _rows(records, run_id, "jobs.parquet", ("number", "=", number))
        story = _failed(failures[0]) if failures else _ended(jobs[0]) if jobs else JobStory(id=row_id)
    return story.model_copy(update={"id": row_id, "key": row["key"], "prompt": row["prompt"]})


def _known(records: RunRecords, run_id: str) -> KnownRun:
    try:
        return _described(records, run_id, orjson.loads(records.read(run_id, "run.json") or b"{}"))
    except (AttributeError, TypeError, ValueError):  # damaged: still list the other runs
        return _described(records, run_id, {})


def _described(records: RunRecords, run_id: str, record: Mapping[str, Any]) -> KnownRun:
    settings, plan = record.get("settings") or {}, record.get("plan") or {}
    common = {
        "run_id": run_id,
        "planned_at": record.get("planned_at"),
        "catalog": (settings.get("catalog") or {}).get("path"),
        "provider": (settings.get("api") or {}).get("provider"),
        "output": (settings.get("output") or {}).get("uri"),
        "rows": plan.get("rows"),
        "unique": plan.get("unique"),
    }
    summary = _summary(records, run_id)
    if summary is not None:
        state = "stopped" if summary.stopped or summary.pending else "failures" if summary.failed else "done"
        ended = {"done", "failed", "pending", "cost_usd", "images_per_minute"}
        return KnownRun(**common, state=state, **summary.model_dump(include=ended))
    done = failed = 0
    for line in records.lines(run_id):
        rejected = b'"event":"rejected"' in line
        done += (b'"event":"done"' in line) - rejected - (b'"event":"redo"' in line)
        failed += (b'"event":"failed"' in line) + rejected - (b'"event":"reopened"' in line)
    unique = plan.get("unique")
    return KnownRun(
        **common,
        state="running" if records.is_running(run_id) else "unfinished",
        done=done,
        failed=failed,
        pending=None if unique is None else max(0, unique - done - failed),
        # At the plan's prices; only the run's own store knows exactly.
        cost_usd=round(plan["cost_usd"] * done / unique, 6) if unique and "cost_usd" in plan else None,
        images_per_minute=None,
    )


def _summary(records: RunRecords, run_id: str) -> RunSummary | None:
    content = records.read(run_id, "summary.json")
    if content is None:
        return None
    try:
        return RunSummary.model_validate_json(content)
    except ValidationError:
        return None  # from another version, or damaged: fall back on the log


def _events(lines: Iterable[bytes], names: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    marks = [b'"event":"' + name + b'"' for name in names]
    for line in lines:
        if any(mark in line for mark in marks):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # cut short by a kill


def _stories(
    events: Iterable[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]
) -> dict[int, JobStory]:
    """What happened to each job, by its number, from its events."""
    stories: dict[int, JobStory] = {}
    for event in events:
        if not wanted(event):
            continue
        number = event["job"]
        story = stories.get(number) or JobStory(id=event["id"], job=number, key=event["key"])
        stories[number] = story
        story.attempts = event["attempt"]
        story.request_id = event["request_id"] or story.request_id
        if event["event"] == "attempt_failed":
            story.history.append(Attempt(**event))
        elif event["event"] == "reopened":
            story.status = "pending"
        elif event["event"] == "done":
            story.status, story.latency_s, story.image = "done", event["latency_s"], event["image"]
            story.error_class = story.error_code = story.message = story.retryable = None
        else:
            story.status, story.retryable = "failed", event["retryable"]
            story.error_class, story.error_code = event["error_class"], event["error_code"]
            story.message, story.prompt = event["message"], event["input"]["prompt"]
    return stories


def _rows(
    records: RunRecords, run_id: str, name: str, row: tuple[str, str, object] | None = None
) -> list[dict[str, Any]]:
    """The rows of a run's Parquet file, or those that match a filter.

    Raises:
        InputError: the file is damaged.
    """
    content = records.read(run_id, name)
    if content is None:
        return []
    import pyarrow.parquet as pq  # noqa: PLC0415 - listing runs does not need it

    # In this thread: pyarrow's own, begun just before the command ends, abort the process at its exit.
    try:
        table = pq.read_table(io.BytesIO(content), filters=row and [row], use_threads=False, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The file {name} of run {run_id!r} is damaged ({cut(str(error), 200)}). A copy of it is in the"
            " bucket (with --output), or on the run's machine (without)."
        ) from error
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _failed(row: Mapping[str, Any]) -> JobStory:
    return JobStory(
        id=row["id"],
        status="failed",
        job=row["number"],
        key=row["key"],
        error_class=row["error_class"],
        error_code=row["error_code"],
        message=row["error_message"],
        retryable=row["retryable"],
        attempts=row["attempts"],
        prompt=row["prompt"],
    )


def _ended(row: Mapping[str, Any]) -> JobStory:
    names = ("id", "status", "key", "attempts", "request_id", "latency_s", "image")
    return JobStory(job=row["number"], **{name: row[name] for name in names})
