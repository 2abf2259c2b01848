"""Records what happens: a line a job event in log.jsonl, a line a second of pace, and live progress."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import orjson

from blocks.errors import ApiError, ErrorClass
from blocks.jobs import Job
from tasks.engine.pacer import Pacer

_WINDOW_S = 30
"""Live throughput is that of the last so many seconds."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A run at one moment. Latency in seconds, cost in USD; rates are those of the last half minute."""

    run_id: str
    unique: int
    done: int
    failed: int
    images_per_minute: float
    p95_latency_s: float | None
    rate_limited: int
    retries: int
    errors: dict[str, int]
    concurrency: int
    in_flight: int
    cost_usd: float

    @property
    def left(self) -> int:
        """Jobs not finished yet."""
        return self.unique - self.done - self.failed


_listeners: list[Callable[[Progress], None]] = []


@contextmanager
def watching(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Have ``listener`` told of every run's progress in this process, about four times a second."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@dataclass(slots=True)
class _Second:
    requests: int = 0
    rate_limited: int = 0
    retries: int = 0


class Recorder:
    """The log and the counters of one run in one process.

    Args:
        log: log.jsonl, appended to; written line by line, so that a killed process loses none.
        wall: Unix seconds.
    """

    def __init__(
        self, run_id: str, log: Path, pacer: Pacer, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._run_id = run_id
        self._file: BinaryIO = log.open("ab", buffering=0)
        self._pacer = pacer
        self._wall = wall
        self._second = _Second()
        self._latencies: deque[float] = deque(maxlen=500)
        self._finished: deque[float] = deque()
        self._errors: Counter[str] = Counter()
        self._retries = 0
        self.unique = 0
        self.done = 0
        self.failed = 0
        self.cost_usd = 0.0

    def begin(self, *, unique: int, done: int, failed: int, cost_usd: float) -> None:
        """What the run holds before this process does anything."""
        self.unique, self.done, self.failed, self.cost_usd = unique, done, failed, cost_usd

    def sent(self) -> None:
        """A request for an image leaves."""
        self._second.requests += 1

    def attempt_failed(self, job: Job, error: ApiError, retry_in_s: float | None) -> None:
        """An attempt brought no image; a retry follows, or not."""
        if error.error_class is ErrorClass.RATE_LIMITED:
            self._second.rate_limited += 1
        self._errors[error.error_class.value] += 1
        if retry_in_s is not None:
            self._retries += 1
            self._second.retries += 1
            retry_in_s = round(retry_in_s, 3)
        self._write(
            "attempt_failed",
            job,
            error_class=error.error_class,
            error_code=error.code,
            message=error.message,
            retry_in_s=retry_in_s,
        )

    def finished(self, job: Job) -> None:
        """The job's image is in the bucket."""
        self.done += 1
        if job.latency_s is not None:
            self._latencies.append(job.latency_s)
        self._finished.append(time.monotonic())
        self._write("done", job, latency_s=job.latency_s and round(job.latency_s, 4), image=job.image)

    def gave_up(self, job: Job) -> None:
        """The job failed. Its whole input goes into the log, for the API's own words mean little alone."""
        self.failed += 1
        self._write(
            "failed",
            job,
            error_class=job.error_class,
            error_code=job.error_code,
            message=job.error_message,
            retryable=job.retryable,
            input={
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                "width": job.width,
                "height": job.height,
                "seed": job.seed,
                "steps": job.steps,
                "model": job.model,
            },
        )

    def reopened(self, job: Job) -> None:
        """A failed job is to be tried again: its line keeps why it had failed."""
        self._write("reopened", job, error_class=job.error_class, error_code=job.error_code)

    def event(self, event: str, **details: object) -> None:
        """An event of the run itself."""
        self._write_line({"at": self._time(), "event": event, "run_id": self._run_id, **details})

    def progress(self) -> Progress:
        """The run as of now."""
        now = time.monotonic()
        while self._finished and now - self._finished[0] > _WINDOW_S:
            self._finished.popleft()
        span = max(now - self._finished[0], 1.0) if self._finished else 1.0
        latencies = sorted(self._latencies)
        return Progress(
            run_id=self._run_id,
            unique=self.unique,
            done=self.done,
            failed=self.failed,
            images_per_minute=60.0 * len(self._finished) / span,
            p95_latency_s=latencies[int(0.95 * (len(latencies) - 1))] if latencies else None,
            rate_limited=self._pacer.rate_limited,
            retries=self._retries,
            errors=dict(self._errors),
            concurrency=self._pacer.concurrency,
            in_flight=self._pacer.in_flight,
            cost_usd=self.cost_usd,
        )

    async def keep_time(self) -> None:
        """Tell the listeners four times a second, and write the pace once a second, until cancelled."""
        while True:
            for _ in range(4):
                await anyio.sleep(0.25)
                self._tell()
            self.write_pace()

    def write_pace(self) -> None:
        """Write the line of the second that has passed, if anything happened in it."""
        second, self._second = self._second, _Second()
        if second.requests or second.retries or self._pacer.in_flight:
            self.event(
                "pace",
                requests=second.requests,
                rate_limited=second.rate_limited,
                retries=second.retries,
                concurrency=self._pacer.concurrency,
                in_flight=self._pacer.in_flight,
            )

    def close(self) -> None:
        """Write what is left and close the log."""
        self.write_pace()
        self._tell()
        self._file.close()

    def _tell(self) -> None:
        if _listeners:
            progress = self.progress()
            for listener in _listeners:
                listener(progress)

    def _write(self, event: str, job: Job, **details: object) -> None:
        self._write_line(
            {
                "at": self._time(),
                "event": event,
                "run_id": self._run_id,
                "job": job.number,
                "id": job.id,
                "key": job.key,
                "status": job.status,
                "attempt": job.attempts,
                "request_id": job.request_id,
                **details,
            }
        )

    def _write_line(self, line: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _time(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")
