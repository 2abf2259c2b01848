"""The summary of a run, which the flow returns and the command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from imagemill.formatting import money

if TYPE_CHECKING:  # loading the engine loads Prefect, which reading a summary does not need
    from imagemill.engine.engine import StopKind


class RunSummary(BaseModel):
    """The result of a run. Costs are in USD, latencies and ``wall_s`` in seconds."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(description="The run's id, for resume and imagemill runs.")
    rows: int = Field(description="Rows read from the catalog.")
    rejected: int = Field(description="Rows that did not become jobs; rejected.parquet has the reasons.")
    unique: int = Field(description="Jobs: the number of different pictures requested.")
    duplicates: int = Field(description="Rows that request the same picture as an earlier row.")
    done: int = Field(description="Jobs whose image is in the bucket.")
    failed: int = Field(description="Jobs that failed; failed.parquet has the reasons.")
    pending: int = Field(description="Jobs that a resume would continue with.")
    generated: int = Field(description="Images that this run paid for.")
    reused: int = Field(description="Images that were already in the bucket.")
    images_per_minute: float = Field(description="Generated images over the time it took.")
    error_rate: float = Field(description="Failed jobs divided by finished jobs, from 0 to 1.")
    p50_latency_s: float | None = Field(
        description="Median time from request to image, excluding the wait for a slot."
    )
    p95_latency_s: float | None = Field(description="95th percentile of the same.")
    p50_queued_s: float | None = Field(
        default=None, description="Median time in the vendor's queue, which is no part of the latency."
    )
    p95_queued_s: float | None = Field(default=None, description="95th percentile of the same.")
    cost_usd: float = Field(description="What the run has paid so far, including before a resume.")
    cost_source: str | None = Field(
        default=None,
        description="How the cost is known: told (the API said it for every image), list (by the price for"
        " some), unknown (some have no price). Null if nothing was charged or counted.",
    )
    unanswered: int = Field(
        default=0,
        description="Requests that got no answer, or none that could be read. The API may have charged them.",
    )
    unanswered_usd: float = Field(
        default=0.0, description="What it may have charged for them; not included in cost_usd."
    )
    lost_images: int = Field(
        default=0,
        description="Paid images that neither bucket nor disk could keep, since the run was last started."
        " A resume makes them anew.",
    )
    saved_usd: float = Field(description="What duplicates and images already in the bucket would have cost.")
    requests: int = Field(description="Attempts, including retries.")
    rate_limited: int = Field(description="Attempts that were rate limited (429).")
    retries: int = Field(description="Attempts after the first of each job.")
    errors: dict[str, int] = Field(description="Failed attempts by error class.")
    added: int = Field(default=0, description="Rows that were not in the previous manifest.")
    changed: int = Field(default=0, description="Rows that request a different picture than before.")
    unchanged: int = Field(default=0, description="Rows that request the same picture as before.")
    retired: int = Field(default=0, description="Rows that have left the catalog since.")
    pruned: int = Field(default=0, description="Images of retired and changed rows that were deleted.")
    prunable: int = Field(
        default=0, description="Such images that prune deletes later: prune.parquet says when."
    )
    prune_failed: int = Field(
        default=0, description="Objects that the bucket did not delete: prune.parquet has its error codes."
    )
    refreshed: bool = Field(default=False, description="Whether the run was a refresh.")
    rejections: dict[str, int] = Field(
        default_factory=dict, description="Rejected rows by reason, the ten most frequent reasons."
    )
    wall_s: float = Field(description="Wall time of this session; a resume starts from zero.")
    manifest: str | None = Field(description="Where manifest.parquet is; null if the run could not publish.")
    metrics: str | None = Field(description="Where metrics.parquet is.")
    report: str | None = Field(description="Where report.html is.")
    stopped: str | None = Field(default=None, description="Why the run stopped early.")

    def __str__(self) -> str:
        """The run in one sentence, and a refresh's changes in another."""
        changes = f" {self.changes_in_words}." if self.refreshed else ""
        return (
            f"{self.done:,} of {self.unique:,} images are done, {self.generated:,} of them generated,"
            f" for {money(self.cost_usd)}{self.unanswered_in_words}.{changes}"
        )

    @property
    def changes_in_words(self) -> str:
        """What a refresh changed, to begin a sentence."""
        counted = ", ".join(f"{number:,} {name}" for name, number in self.changes.items())
        waiting = f" ({self.prunable:,} more wait to be pruned)" if self.prunable else ""
        return f"Rows: {counted}{waiting}"

    @property
    def changes(self) -> dict[str, int]:
        """What a refresh changed, in rows; pruned counts images."""
        names = ("added", "changed", "unchanged", "retired", "pruned", "rejected")
        return {name: getattr(self, name) for name in names}

    @property
    def rejections_in_words(self) -> str:
        """How many rows were rejected and why, in a sentence; empty if none were."""
        if not self.rejected:
            return ""
        reasons = f", most often: {next(iter(self.rejections))}" if self.rejections else ""
        return f"{self.rejected:,} of {self.rows:,} rows were rejected{reasons}; rejected.parquet lists them."

    @property
    def unanswered_in_words(self) -> str:
        """What the API may have charged beyond ``cost_usd``, to end a sentence; empty if nothing."""
        if not self.unanswered:
            return ""
        requests = "1 request" if self.unanswered == 1 else f"{self.unanswered:,} requests"
        return f"; {requests} got no answer, and the API may charge {money(self.unanswered_usd)} more"


class RunStoppedError(Exception):
    """The run stopped early and can be resumed. ``summary`` has the state so far, ``kind`` the reason."""

    def __init__(self, summary: RunSummary, kind: StopKind) -> None:
        super().__init__(
            f"{summary.stopped} {summary.done:,} of {summary.unique:,} images are done;"
            f" {summary.pending:,} are pending{summary.unanswered_in_words}."
            f" Resume with run id {summary.run_id}."
        )
        self.summary = summary
        self.kind = kind
