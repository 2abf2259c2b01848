"""The summary of a run: what the flow returns and the command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from imagemill.formatting import money

if TYPE_CHECKING:  # the engine loads Prefect, which those who only read a summary do without
    from imagemill.engine.engine import StopKind


class RunSummary(BaseModel):
    """A run's result. Costs in USD, latencies and ``wall_s`` in seconds."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(description="What a resume and imagemill runs call it.")
    rows: int = Field(description="Rows read from the catalog.")
    rejected: int = Field(description="Rows that never became jobs; rejected.parquet says why.")
    unique: int = Field(description="Jobs: different pictures asked for.")
    duplicates: int = Field(description="Rows whose picture another row asked for already.")
    done: int = Field(description="Jobs whose image is in the bucket.")
    failed: int = Field(description="Jobs that failed; failed.parquet says why.")
    pending: int = Field(description="Jobs that a resume would take up.")
    generated: int = Field(description="Images this run paid for.")
    reused: int = Field(description="Images found in the bucket.")
    images_per_minute: float = Field(description="Generated images over the time that took.")
    error_rate: float = Field(description="Failed jobs over finished jobs, from 0 to 1.")
    p50_latency_s: float | None = Field(
        description="From request to image, without the wait for a slot: half took less."
    )
    p95_latency_s: float | None = Field(description="The same: 95 of 100 took less.")
    cost_usd: float = Field(description="What the run has paid so far, its resumes included.")
    unanswered: int = Field(
        default=0,
        description="Requests that were never answered; a synchronous API may have charged for them.",
    )
    unanswered_usd: float = Field(default=0.0, description="What it may have charged for them.")
    saved_usd: float = Field(description="What duplicates and images found would have cost.")
    requests: int = Field(description="Attempts at an image, retries included.")
    rate_limited: int = Field(description="Attempts answered with a 429.")
    retries: int = Field(description="Attempts beyond the first of each job.")
    errors: dict[str, int] = Field(description="Failed attempts by class of error.")
    added: int = Field(default=0, description="Rows that the manifest before did not have.")
    changed: int = Field(default=0, description="Rows that ask for another picture than before.")
    unchanged: int = Field(default=0, description="Rows that ask for the same picture as before.")
    retired: int = Field(default=0, description="Rows of the manifest before that the catalog lacks.")
    pruned: int = Field(default=0, description="Images of retired and changed rows that were deleted.")
    wall_s: float = Field(description="How long this start of the run took: a resume counts anew.")
    manifest: str | None = Field(
        description="Where manifest.parquet is; null where the run could not publish."
    )
    metrics: str | None = Field(description="Where metrics.parquet is.")
    report: str | None = Field(description="Where report.html is.")
    stopped: str | None = Field(default=None, description="Why the run stopped before its end.")

    def __str__(self) -> str:
        """The run in one sentence."""
        return (
            f"{self.done:,} of {self.unique:,} images are done, {self.generated:,} of them generated,"
            f" for {money(self.cost_usd)}."
        )


class RunStoppedError(Exception):
    """The run stopped early and can be resumed; ``summary`` says how far it came, ``kind`` why."""

    def __init__(self, summary: RunSummary, kind: StopKind) -> None:
        super().__init__(
            f"{summary.stopped} {summary.done:,} of {summary.unique:,} images are done;"
            f" {summary.pending:,} are pending. Resume with run id {summary.run_id}."
        )
        self.summary = summary
        self.kind = kind
