"""OpenTelemetry: spans of runs, shards and attempts, and the four metrics.

This uses opentelemetry-api only: by default, without an SDK, nothing is recorded or sent. To use it,
configure an SDK (``opentelemetry-instrument``, or in code) before the run begins.

Throughput is the rate of ``imagemill.jobs``, the error rate its share with ``status="failed"``, p95 latency
a quantile of ``imagemill.image.duration``, and the total cost the sum ``imagemill.cost``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import metrics, trace
from opentelemetry.trace import ProxyTracerProvider, Span, Status, StatusCode

from imagemill.errors import ApiError
from imagemill.jobs import Job
from imagemill.secrets import masked

_NOTHING: AbstractContextManager[None] = nullcontext()


class Telemetry:
    """The spans and metrics of one run in one process. Whether there is an SDK is checked once, here."""

    def __init__(self, run_id: str, provider: str, model: str) -> None:
        self._run = {"imagemill.run_id": run_id, "imagemill.provider": provider, "imagemill.model": model}
        self._series = {"provider": provider, "model": model}
        # Even without an SDK a span takes about 4 us, and there is one per attempt.
        self._tracing = not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)
        self._tracer = trace.get_tracer("imagemill")
        meter = metrics.get_meter("imagemill")
        self._jobs = meter.create_counter("imagemill.jobs", "{job}", "Jobs finished, by status.")
        self._retries = meter.create_counter(
            "imagemill.attempts.failed", "{attempt}", "Failed attempts, by error class."
        )
        self._duration = meter.create_histogram(
            "imagemill.image.duration", "s", "Time from request to image."
        )
        self._cost = meter.create_counter("imagemill.cost", "{USD}", "What the API charges.")

    def run(self) -> AbstractContextManager[Span | None]:
        """The span of the run, for the block."""
        return self._span("imagemill.run") if self._tracing else _NOTHING

    def shard(self, first: int, last: int) -> AbstractContextManager[Span | None]:
        """The span of a shard of jobs."""
        if not self._tracing:
            return _NOTHING
        return self._span("imagemill.shard", first=first, last=last)

    def attempt(self, job: Job) -> AbstractContextManager[Span | None]:
        """The span of one attempt, including the upload."""
        return self._attempt(job) if self._tracing else _NOTHING

    def finished(self, job: Job) -> None:
        """A job has finished."""
        self._jobs.add(1, {**self._series, "status": job.status.value})
        if job.latency_s is not None:
            self._duration.record(job.latency_s, self._series)

    def attempt_failed(self, error: ApiError) -> None:
        """An attempt has failed."""
        self._retries.add(1, {**self._series, "error.type": error.error_class.value})

    def charged(self, usd: float) -> None:
        """The API charges for an image."""
        self._cost.add(usd, self._series)

    @contextmanager
    def _span(self, name: str, **more: int | str) -> Iterator[Span]:
        attributes = {**self._run, **{f"imagemill.{key}": value for key, value in more.items()}}
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, masked(f"{type(error).__name__}: {error}")))
                raise

    @contextmanager
    def _attempt(self, job: Job) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            "imagemill.attempt",
            attributes={
                **self._run,
                "imagemill.job.id": masked(job.id),
                "imagemill.job.key": job.key,
                "imagemill.attempt": job.attempts + 1,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except ApiError as error:
                span.set_attribute("error.type", error.error_class.value)
                span.set_attribute("imagemill.error_code", error.code)
                span.set_status(Status(StatusCode.ERROR, error.error_class.value))
                raise
            finally:
                if job.request_id:
                    span.set_attribute("imagemill.request_id", masked(job.request_id))
