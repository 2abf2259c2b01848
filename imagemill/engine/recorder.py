"""Records what happens: one log.jsonl line per job event, one per second of pace, and live progress."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from imagemill.engine.job_log import CLOSED, UP_NEXT, JobLog
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job, JobStatus
from imagemill.quality.judge import Answer

_WINDOW_S = 30
"""Live throughput is that of the last so many seconds."""

_SAFE_S = 5.0
"""How long a line may take to the bucket, in seconds. A bucket that is away takes no images either."""


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


class Pace(Protocol):
    """What is in force and on its way at the pacers of a run."""

    @property
    def concurrency(self) -> int:
        """Requests at once, as of now."""

    @property
    def in_flight(self) -> int:
        """Requests on their way."""

    @property
    def rate_limited(self) -> int:
        """Requests that were refused with a 429."""


@dataclass(slots=True)
class _Second:
    requests: int = 0
    rate_limited: int = 0
    retries: int = 0


class Recorder:
    """The log, the telemetry and the counters of one run in one process.

    ``listener`` is called with the run's progress about four times a second.
    """

    def __init__(
        self,
        run_id: str,
        log: JobLog,
        pacer: Pace,
        telemetry: Telemetry,
        *,
        listener: Callable[[Progress], None] | None = None,
    ) -> None:
        self.run_id = run_id
        self._listener = listener
        self._log = log
        self._pacer = pacer
        self.telemetry = telemetry
        self._second = _Second()
        self._latencies: deque[float] = deque(maxlen=500)
        self._finished: deque[float] = deque()
        self._errors: Counter[str] = Counter()
        self._retries = 0
        self._begun: tuple[int, int, float] | None = None
        self._followed: tuple[int, ...] | None = None
        self.unique = 0
        self.done = 0
        self.failed = 0
        self.cost_usd = 0.0
        self.lost_images = 0
        self._named, self._safely_named = set[int](), set[int]()
        self._names_wanted = anyio.Event()
        self._urgent = anyio.Event()
        self._is_uploaded = False
        self._unsafe: list[anyio.Event] = []

    def begin(self, *, unique: int, done: int, failed: int, cost_usd: float) -> None:
        """What the run holds before this process does anything."""
        self.unique, self.done, self.failed, self.cost_usd = unique, done, failed, cost_usd
        self._begun = (done, failed, cost_usd)

    def expect(self, left: int) -> None:
        """So many jobs are left for this process, one of several that work on the run."""
        self.unique = self.done + self.failed + left

    @property
    def left(self) -> int:
        """Jobs that are not finished: the run's, or this process's part if it is one of several."""
        return self.unique - self.done - self.failed

    def tally(self) -> dict[str, Any]:
        """What this process has done so far, for the one that leads the run; plain JSON."""
        return {
            "done": self.done,
            "failed": self.failed,
            "left": self.left,
            "cost_usd": self.cost_usd,
            "retries": self._retries,
            "errors": dict(self._errors),
            "rate_limited": self._pacer.rate_limited,
            "concurrency": self._pacer.concurrency,
            "in_flight": self._pacer.in_flight,
        }

    def follow(self, tallies: Sequence[dict[str, Any]]) -> None:
        """Progress is that of other processes, on top of what the run began with."""
        if self._begun is None:
            return
        done, failed, cost_usd = self._begun
        now, before = time.monotonic(), self.done
        self.done = done + sum(t["done"] for t in tallies)
        self.failed = failed + sum(t["failed"] for t in tallies)
        self.cost_usd = cost_usd + sum(t["cost_usd"] for t in tallies)
        self._finished.extend([now] * max(0, self.done - before))
        self._retries = sum(t["retries"] for t in tallies)
        self._errors = Counter()
        for tally in tallies:
            self._errors.update(tally["errors"])
        self._followed = tuple(
            sum(t[name] for t in tallies) for name in ("rate_limited", "concurrency", "in_flight")
        )

    def sent(self, job: Job) -> None:
        """A request for an image leaves. Its line is written first, so that a resume knows of it."""
        self._second.requests += 1
        self._job("sent", job, **(_paid(job) if job.attempts > 1 or job.unanswered else {}))

    def accepted(self, job: Job) -> None:
        """The API has the request; the line holds its id, and what it costs where that is booked with it."""
        self._job("accepted", job, **_paid(job))

    def charged(self, usd: float) -> None:
        """The API charges for an image."""
        self.cost_usd += usd
        self.telemetry.charged(usd)

    def attempt_failed(self, job: Job, error: ApiError, retry_in_s: float | None) -> None:
        """An attempt brought no image; a retry follows, or not."""
        if error.error_class is ErrorClass.RATE_LIMITED:
            self._second.rate_limited += 1
        self._errors[error.error_class.value] += 1
        if retry_in_s is not None:
            self._retries += 1
            self._second.retries += 1
            retry_in_s = round(retry_in_s, 3)
        self.telemetry.attempt_failed(error)
        if job.unanswered:
            self._urgent.set()
        self._job(
            "attempt_failed",
            job,
            error_class=error.error_class,
            error_code=error.code,
            message=error.message,
            retry_in_s=retry_in_s,
            **_paid(job),
        )

    def judged(self, job: Job, answer: Answer) -> None:
        """The judge gave its opinion on the job's picture, or none."""
        opinion = answer.opinion
        said = {"score": opinion.score, "words": opinion.words} if opinion else {"failure": answer.failure}
        self._job("judged", job, **said, **_paid(job))

    def finished(self, job: Job) -> None:
        """The job's image is in the bucket."""
        self.done += 1
        if job.latency_s is not None:
            self._latencies.append(job.latency_s)
        self._finished.append(time.monotonic())
        self.telemetry.finished(job)
        self._job(
            "done",
            job,
            latency_s=job.latency_s and round(job.latency_s, 4),
            image=job.image,
            quality=job.quality,
            suspect=job.suspect,
        )

    def retaken(self, event: str, job: Job, why: str) -> None:
        """A picture was made anew: which take stays, and why."""
        self._job(event, job, image=job.image, kept_seed=job.take_seed, kept=job.suspect, why=why)

    def redo(self, job: Job) -> None:
        """A person wants another picture in place of the one there is."""
        self.done -= job.status is JobStatus.DONE
        self._job("redo", job, image=job.image)

    def kept(self, job: Job) -> None:
        """A person kept a picture that was suspect."""
        self._job("kept", job, image=job.image)

    def rejected(self, job: Job) -> None:
        """A person rejected a picture."""
        self._job("rejected", job, image=job.image, message=job.error_message)

    def gave_up(self, job: Job) -> None:
        """The job failed. Its whole input goes into the log, for the API's own words mean little alone."""
        self.failed += 1
        self.telemetry.finished(job)
        self._job(
            "failed",
            job,
            error_class=job.error_class,
            error_code=job.error_code,
            message=job.error_message,
            retryable=job.retryable,
            **_paid(job),
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

    def reopened(self, job: Job, error_class: str | None, error_code: str | None) -> None:
        """A job that failed so is to be tried again."""
        self._job("reopened", job, error_class=error_class, error_code=error_code, **_paid(job))

    def given_up(self, job: Job) -> None:
        """Nobody asks about the job's request any more, though the API may charge for it."""
        self._job("given_up", job, **_paid(job))

    def took_back(self) -> None:
        """A job that failed in this run is about to be reopened: its failure was not its own."""
        self.failed -= 1

    def lost_image(self, name: str, reason: str) -> None:
        """An image that was paid for could be kept neither in the bucket nor in the run's folder."""
        self.lost_images += 1
        self.event("image_lost", image=name, reason=reason)

    def want_names(self) -> None:
        """Most of the jobs that :meth:`up_next` named have been sent: name the next ones soon."""
        self._names_wanted.set()
        self._urgent.set()

    async def names_wanted(self) -> None:
        """Wait for :meth:`want_names`."""
        await self._names_wanted.wait()
        self._names_wanted = anyio.Event()

    async def urgent(self) -> None:
        """Wait until a line should be uploaded soon: one about money, or one that somebody waits for."""
        await self._urgent.wait()
        self._urgent = anyio.Event()

    def uploading(self) -> list[anyio.Event]:
        """The lines so far are being uploaded. What this returns is to be set once they are in the bucket.

        Raises:
            OSError: a full disk does not take them.
        """
        self._is_uploaded = True
        self.flush()
        return self._unsafe.copy()

    def flush(self) -> None:
        """Write the lines that a full disk has not taken.

        Raises:
            OSError: it is full still.
        """
        self._log.flush()

    async def until_safe(self) -> None:
        """Wait a few seconds at most until the lines so far survive this machine, if lines are uploaded."""
        if self._is_uploaded:
            safe = anyio.Event()
            self._unsafe.append(safe)
            self._urgent.set()
            try:
                with anyio.move_on_after(_SAFE_S):
                    await safe.wait()
            finally:
                self._unsafe.remove(safe)

    def up_next(self, numbers: Sequence[int]) -> frozenset[int]:
        """These jobs may be sent before the next lines are safe in the bucket; all that are named."""
        if numbers and self._named != set(numbers):  # fewer, too: a lost machine's successor counts them all
            self._named = set(numbers)
            self.event(UP_NEXT, jobs=numbers)
        return frozenset(self._named)

    def named_safely(self, jobs: Collection[int]) -> None:
        """The line that names these jobs is in the bucket."""
        self._safely_named = self._named.intersection(jobs)

    def has_named(self, job: int) -> bool:
        """Whether the job of this number is named in the bucket, and no later line says more of it."""
        return job in self._safely_named and job in self._named

    def placeholder(self, digest: str) -> None:
        """A file turned out to be a placeholder: a resume knows it by this line."""
        self.event("placeholder", digest=digest)

    def _job(self, event: str, job: Job, **details: object) -> None:
        """Write a line about a job, which from then on has to be named again before it may be sent."""
        self._named.discard(job.number)
        self._safely_named.discard(job.number)
        self._log.job(event, job, **details)

    def event(self, event: str, **details: object) -> None:
        """An event of the run itself."""
        self._log.event(event, **details)

    def progress(self) -> Progress:
        """The run as of now."""
        now = time.monotonic()
        while self._finished and now - self._finished[0] > _WINDOW_S:
            self._finished.popleft()
        span = max(now - self._finished[0], 1.0) if self._finished else 1.0
        latencies = sorted(self._latencies)
        own = (self._pacer.rate_limited, self._pacer.concurrency, self._pacer.in_flight)
        rate_limited, concurrency, in_flight = self._followed or own
        return Progress(
            run_id=self.run_id,
            unique=self.unique,
            done=self.done,
            failed=self.failed,
            images_per_minute=60.0 * len(self._finished) / span,
            p95_latency_s=latencies[int(0.95 * (len(latencies) - 1))] if latencies else None,
            rate_limited=rate_limited,
            retries=self._retries,
            errors=dict(self._errors),
            concurrency=concurrency,
            in_flight=in_flight,
            cost_usd=self.cost_usd,
        )

    async def keep_time(self) -> None:
        """Call the listener four times a second, and write the pace once a second, until cancelled."""
        while True:
            for _ in range(4):
                await anyio.sleep(0.25)
                self._show()
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
        self._show()
        self.event(CLOSED)
        self._log.close()

    def _show(self) -> None:
        if self._listener is not None:
            self._listener(self.progress())


def _paid(job: Job) -> dict[str, float | str]:
    return {
        "cost_usd": round(job.cost_usd, 12),
        "cost_source": job.cost_source,
        "unanswered": job.unanswered,
        "unanswered_usd": round(job.unanswered_usd, 12),
        "judge_usd": round(job.judge_usd, 12),
    }
