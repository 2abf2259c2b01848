"""The summary of a run, which the flow returns and the command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from imagemill.errors import RETRY_RULES, InputError, Outcome
from imagemill.formatting import counted, money
from imagemill.jobs import CostSource

if TYPE_CHECKING:  # loading the engine loads Prefect, which reading a summary does not need
    from collections.abc import Mapping

    import pandas as pd

    from imagemill.engine.engine import StopKind
    from imagemill.settings import OutputSettings

    AnyOutput = OutputSettings | Mapping[str, object] | str


_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RouteTotals(BaseModel):
    """What one route of several made of a run. Costs are in USD, latencies in seconds.

    A job counts where its latest request went.
    """

    model_config = ConfigDict(frozen=True)

    route: str
    made_by: str = Field(max_length=600, description="Its vendor and model.")
    images: int = Field(ge=0)
    failed: int = Field(ge=0)
    images_per_minute: _Amount = Field(description="Images from its first request to its last.")
    error_rate: _Amount
    p50_latency_s: _Amount | None
    p95_latency_s: _Amount | None
    cost_usd: _Amount
    measured: int = Field(default=0, ge=0, description="Pictures whose quality was measured.")
    suspect: int = Field(ge=0)
    requests: int = Field(ge=0)
    stopped: str | None = Field(
        default=None,
        description="Why it took no more jobs: closed until the next resume, or down at the end.",
    )


class RunSummary(BaseModel):
    """The result of a run. Costs are in USD, latencies and ``wall_s`` in seconds."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(description="The run's id, for resume and imagemill runs.")
    rows: int = Field(description="Rows read from the catalog.")
    rejected: int = Field(description="Rows that did not become jobs; rejected.parquet has the reasons.")
    unique: int = Field(description="Jobs: the number of different pictures requested.")
    duplicates: int = Field(description="Rows that request the same picture as an earlier row.")
    variants: int = Field(default=1, description="Pictures per row; the other numbers count all of them.")
    done: int = Field(description="Jobs whose image is in the bucket.")
    failed: int = Field(description="Jobs that failed; failed.parquet has the reasons.")
    rejected_in_review: int = Field(
        default=0, description="Jobs whose picture a person rejected in a review; they are not failures."
    )
    pending: int = Field(description="Jobs that a resume would continue with.")
    generated: int = Field(
        description="Jobs whose image this run made and paid for, also where it paid for more than one."
    )
    reused: int = Field(description="Images that were already in the bucket.")
    images_per_minute: float = Field(description="Generated images over the time it took.")
    error_rate: float = Field(description="Failed jobs divided by finished jobs, from 0 to 1.")
    p50_latency_s: float | None = Field(
        description="Median time from request to image, excluding the wait for a slot, of the images whose"
        " request was sent by the process that got them. Null if there was none, and for an interrupted run,"
        " which is measured once it is resumed."
    )
    p95_latency_s: float | None = Field(description="95th percentile of the same.")
    p50_queued_s: float | None = Field(
        default=None, description="Median time in the vendor's queue, which the latency does not include."
    )
    p95_queued_s: float | None = Field(default=None, description="95th percentile of the same.")
    cost_usd: float = Field(description="What the run has paid so far, including before a resume.")
    cost_source: str | None = Field(
        default=None,
        description="Where the cost is from: told (the API said it for every image), list (from the price for"
        " some), unknown (some have no price). Null if nothing was charged or counted, and for an interrupted"
        " run.",
    )
    unanswered: int = Field(
        default=0,
        description="Requests that got no answer, or none that could be read. The API may have charged them.",
    )
    unanswered_usd: float = Field(
        default=0.0, description="What it may have charged for them; not included in cost_usd."
    )
    measured: int = Field(default=0, description="Pictures whose quality was measured.")
    suspect: int = Field(
        default=0, description="Pictures to look at: the column suspect of jobs.parquet says why."
    )
    judged: int = Field(default=0, description="Pictures that the judge has scored.")
    unjudged: int = Field(
        default=0, description="Pictures without a score: judge_failure in jobs.parquet says why."
    )
    judge_cost_usd: float = Field(default=0.0, description="What the judge cost; included in cost_usd.")
    lost_images: int = Field(
        default=0,
        description="Paid images that neither bucket nor disk could keep, since the run was last started."
        " A resume makes them again.",
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
        default=0, description="More such images, which prune deletes later: prune.parquet says when."
    )
    prune_failed: int = Field(
        default=0, description="Objects that the bucket did not delete: prune.parquet has its error codes."
    )
    refreshed: bool = Field(default=False, description="Whether the run was a refresh.")
    rejections: dict[str, int] = Field(
        default_factory=dict, description="Rejected rows by reason, the ten most frequent reasons."
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="The catalog's columns that were used, by imagemill's names."
    )
    carried: list[str] = Field(
        default_factory=list, description="The catalog's other columns, which the manifest keeps."
    )
    notes: list[str] = Field(
        default_factory=list,
        description="What may surprise about the catalog's columns: matched in another case, not carried,"
        " or of different types in different files.",
    )
    routes: list[RouteTotals] = Field(
        default_factory=list, description="The metrics of each route, in a run over several."
    )
    wall_s: float = Field(description="Wall time of this session; a resume starts from zero.")
    manifest: str | None = Field(description="Where manifest.parquet is; null if the run could not publish.")
    metrics: str | None = Field(description="Where metrics.parquet is.")
    report: str | None = Field(description="Where report.html is.")
    stopped: str | None = Field(default=None, description="Why the run stopped early.")
    s3_endpoint_url: str | None = Field(
        default=None, description="The S3 server that the run was given; null if boto3's configuration says."
    )
    s3_bucket_block: str | None = Field(
        default=None, description="The saved S3Bucket block that the run was given."
    )

    def jobs(self, output: AnyOutput | None = None) -> pd.DataFrame:
        """The run's jobs.parquet: one row per job, with status, attempts, cost and times.

        Args:
            output: how the bucket is reached from here, if not with the run's own endpoint or block.

        Raises:
            InputError: the run published no records, or the bucket cannot be reached from here.
        """
        return self._frame(f"runs/{self.run_id}/jobs.parquet", output)

    def failed_jobs(self, output: AnyOutput | None = None) -> pd.DataFrame:
        """The run's failed.parquet: one row per failed job, with its full input. As :meth:`jobs`."""
        return self._frame(f"runs/{self.run_id}/failed.parquet", output)

    def rejected_rows(self, output: AnyOutput | None = None) -> pd.DataFrame:
        """The run's rejected.parquet: rows that became no jobs, and why. Repaired, it is a catalog."""
        return self._frame(f"runs/{self.run_id}/rejected.parquet", output)

    def manifest_rows(self, output: AnyOutput | None = None) -> pd.DataFrame:
        """The output's manifest as it is now: every row of the catalog, with the address of its image."""
        return self._frame("manifest.parquet", output)

    def _frame(self, name: str, output: AnyOutput | None) -> pd.DataFrame:
        from imagemill.runs.frames import frame_of  # noqa: PLC0415 - loads pandas and Prefect

        if self.manifest is None:
            raise InputError(f"Run {self.run_id!r} has not published its records. Resume it.")
        if output is not None:
            return frame_of(output, name)
        own = {
            "uri": self.manifest.removesuffix("/manifest.parquet"),
            "s3_endpoint_url": self.s3_endpoint_url,
            "s3_bucket_block": self.s3_bucket_block,
        }
        try:
            return frame_of(own, name)
        except InputError as error:
            raise InputError(
                f"{error} If the bucket is reached differently from here, pass output."
            ) from error

    def __str__(self) -> str:
        """What was made, what it cost and how to go on, in one sentence; of a refresh also its rows."""
        parts = [self._images, *([self._rows] if self.refreshed else []), self._cost, *self._next]
        stopped = f" stopped early: {self.stopped.rstrip('.')};" if self.stopped else ":"
        return f"Run {self.run_id}{stopped} {'; '.join(parts)}."

    @property
    def _images(self) -> str:
        made = {"generated": self.generated, "reused": self.reused}
        of_done = ", ".join(f"{number:,} {how}" for how, number in made.items() if number)
        parts = []
        if self.unique:
            are = "image is" if self.unique == 1 else "images are"
            parts.append(f"{self.done:,} of {self.unique:,} {are} done{of_done and f' ({of_done})'}")
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [self.rejected_in_review_in_words] if self.rejected_in_review else []
        parts += [f"{self.pending:,} {'is' if self.pending == 1 else 'are'} pending"] if self.pending else []
        parts += [f"{self.suspect:,} to look at"] if self.suspect else []
        if self.rejected:
            most = f" (most often: {next(iter(self.rejections))})" if self.rejections else ""
            parts.append(f"{counted(self.rejected, 'row was', 'rows were')} rejected{most}")
        nothing = "there was nothing to do" if self.rows else "the catalog has no rows"
        return ", ".join(parts) or nothing

    @property
    def _rows(self) -> str:
        changes = f"{counted(self.added, 'row', 'rows')} added, {self.changed:,} changed"
        pruned = counted(self.pruned, "image", "images")
        later = f", {self.prunable:,} more to be pruned later" if self.prunable else ""
        return f"{changes}, {self.unchanged:,} unchanged, {self.retired:,} retired, {pruned} pruned{later}"

    @property
    def _cost(self) -> str:
        known = money(self.cost_usd) if self.cost_usd else "nothing"
        if self.cost_source == CostSource.UNKNOWN:
            known = f"{known} for images of known price" if self.cost_usd else "an unknown amount"
        more = ""
        if self.unanswered:
            requests = counted(self.unanswered, "request", "requests")
            more = f", and perhaps {money(self.unanswered_usd)} more for {requests} without an answer"
        return f"it cost {known}{more}"

    @property
    def _next(self) -> list[str]:
        """Where the reasons are, and how to go on."""
        if self.pending or self.stopped:
            return ["start it again with its id as execution.run_id to resume it"]
        files = [name for name in ("failed", "rejected") if getattr(self, name)]
        found = " and ".join(f"{name}.parquet" for name in files)
        have = "have" if len(files) > 1 else "has"
        reasons = [f"{found} {have} the reasons"] if files else []
        return [*reasons, *([self._retry] if self.failed else [])]

    @property
    def _retry(self) -> str:
        """What retry-failed would do, which by itself leaves alone what would fail again."""
        outcomes = {rule.outcome for error_class, rule in RETRY_RULES.items() if self.errors.get(error_class)}
        if Outcome.PERMANENT not in outcomes:
            return "retry-failed tries the failed ones again"
        if Outcome.RETRYABLE not in outcomes:
            return "retry-failed skips what the API refused, unless permanent is set"
        return (
            "retry-failed tries the failed ones again, but skips what the API refused unless permanent is set"
        )

    @property
    def rejected_in_review_in_words(self) -> str:
        """How many pictures a person rejected; empty if none."""
        number = self.rejected_in_review
        return f"{number:,} rejected in review" if number else ""

    @property
    def judged_in_words(self) -> str:
        """How many pictures the judge scored, for how much, in a sentence; empty if there was no judge."""
        if not self.judged and not self.unjudged:
            return ""
        cost = f" for {money(self.judge_cost_usd)}" if self.judge_cost_usd else ""
        without = (
            f"; {counted(self.unjudged, 'has', 'have')} no score (judge_failure says why)"
            if self.unjudged
            else ""
        )
        return f"The judge scored {counted(self.judged, 'picture', 'pictures')}{cost}{without}."

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
        requests = counted(self.unanswered, "request", "requests")
        return f"; {requests} got no answer, and the API may charge {money(self.unanswered_usd)} more"


class RunStoppedError(Exception):
    """The run stopped early and can be resumed. ``summary`` has the state so far, ``kind`` the reason."""

    def __init__(self, summary: RunSummary, kind: StopKind) -> None:
        super().__init__(str(summary))
        self.summary = summary
        self.kind = kind
