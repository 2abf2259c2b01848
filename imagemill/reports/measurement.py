"""Measures a run: the four metrics over time and for the whole run, its summary and its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.bucket.manifest_diff import Changes
from imagemill.catalog.counts import PlanCounts
from imagemill.errors import ErrorClass
from imagemill.formatting import counted
from imagemill.jobs import CostSource
from imagemill.media_types import HTML, JSON, PARQUET
from imagemill.parquet import read_batches, read_rows
from imagemill.reports.contact_sheet import Tile, spread_rows, tiles_of
from imagemill.reports.metrics import QUALITY, MeasuredJobs, Pace, Savings, metrics_table, working_s
from imagemill.reports.report import FailureGroup, MetricsBucket, Report, render_report
from imagemill.reports.route_totals import route_totals
from imagemill.runs.session import Session
from imagemill.runs.summary import RouteTotals, RunSummary
from imagemill.settings import RunSettings
from imagemill.stores import JobTotals
from imagemill.usd import plus

_FAILURE = ["error_class", "error_code", "retryable", "id", "prompt", "error_message"]
_TILES = 48


def publish_measurements(session: Session, counts: PlanCounts, changes: Changes) -> RunSummary:
    """Write metrics, report and the run's row into the bucket; the summary."""
    settings, folder, bucket = session.settings, session.folder.path, session.bucket
    jobs, pace = MeasuredJobs.read(folder / "jobs.parquet"), read_pace(session)
    savings = Savings.read(session.folder.plan, len(jobs.done), session.maker.price_usd)
    metrics = metrics_table(jobs, pace, savings)
    pq.write_table(metrics, folder / "metrics.parquet", compression="zstd")
    run = f"runs/{settings.run_id}"
    metrics_uri = bucket.upload(folder / "metrics.parquet", f"{run}/metrics.parquet", PARQUET)
    saved = savings.usd(jobs)
    summary = summarize(session, counts, jobs, pace).model_copy(
        update={
            **asdict(changes),
            "routes": _routes(session),
            "saved_usd": plus(*saved),
            "manifest": bucket.uri_of("manifest.parquet"),
            "metrics": metrics_uri,
            "report": bucket.uri_of(f"{run}/report.html"),
        }
    )
    report = folder / "report.html"
    report.write_text(render_report(_report(session, summary, jobs, metrics, saved)), encoding="utf-8")
    bucket.upload(report, f"{run}/report.html", HTML)
    pq.write_table(_run_table(settings, summary, jobs), folder / "run.parquet")
    bucket.upload(folder / "run.parquet", f"metrics/run_id={settings.run_id}/run.parquet", PARQUET)
    session.folder.write_summary(summary)
    bucket.upload(session.folder.summary, f"{run}/summary.json", JSON)
    return summary


def _routes(session: Session) -> list[RouteTotals]:
    if session.makers is None:
        return []
    stops = session.wait(session.engine.stopped_routes)
    return route_totals(session.folder.path / "jobs.parquet", session.makers, stops)


def count(session: Session, counts: PlanCounts) -> RunSummary:
    """The summary of a run that was interrupted: counted, nothing published."""
    summary = summarize(session, counts, MeasuredJobs.none(), read_pace(session))
    try:
        session.folder.write_summary(summary)
    except OSError:  # a full disk may be why the run stops, or one that is only to be read
        with suppress(OSError):
            session.folder.forget_summary()
    return summary


def summarize(session: Session, counts: PlanCounts, jobs: MeasuredJobs, pace: Pace) -> RunSummary:
    """A run's summary, from its store, its jobs and its pace."""
    totals: JobTotals = session.wait(session.store.totals)
    finished = totals.done + totals.failed
    worked_s = working_s(jobs, pace)
    price = (counts.cost_usd / counts.unique) if counts.unique else 0.0
    return RunSummary(
        run_id=session.settings.run_id,
        rows=counts.rows,
        rejected=counts.rejected,
        unique=counts.unique,
        duplicates=counts.duplicates,
        variants=counts.variants,
        done=totals.done,
        failed=totals.failed,
        rejected_in_review=totals.rejected,
        pending=totals.pending,
        generated=totals.generated,
        reused=totals.reused,
        images_per_minute=round(60 * totals.generated / worked_s, 2) if worked_s else 0.0,
        error_rate=round(totals.failed / finished, 6) if finished else 0.0,
        p50_latency_s=jobs.latency_quantile(0.5),
        p95_latency_s=jobs.latency_quantile(0.95),
        p50_queued_s=jobs.queued_quantile(0.5),
        p95_queued_s=jobs.queued_quantile(0.95),
        cost_usd=round(totals.cost_usd, 12),
        cost_source=CostSource.of_total([*jobs.cost_sources, *_judge_source(session, jobs)]),
        unanswered=totals.unanswered,
        unanswered_usd=round(totals.unanswered_usd, 12),
        measured=jobs.measured,
        suspect=int(jobs.suspect.sum()),
        judged=int(jobs.judged.sum()),
        unjudged=int(jobs.unjudged.sum()),
        judge_cost_usd=round(totals.judge_usd, 12),
        lost_images=session.recorder.lost_images,
        saved_usd=round(counts.duplicates_usd + totals.reused * price, 12),
        requests=totals.attempts,
        rate_limited=pace.errors["rate_limited"],
        retries=totals.retries,
        errors=dict(pace.errors),
        refreshed=session.settings.refresh is not None,
        rejections=_rejections(session.folder.rejected),
        columns=counts.columns.get("used", {}),
        carried=counts.columns.get("carried", []),
        notes=counts.columns.get("notes", []),
        wall_s=round(session.wall_s, 2),
        manifest=None,
        metrics=None,
        report=None,
        stopped=_why_stopped(session),
        s3_endpoint_url=session.settings.output.s3_endpoint_url,
        s3_bucket_block=session.settings.output.s3_bucket_block,
    )


def _judge_source(session: Session, jobs: MeasuredJobs) -> list[CostSource]:
    """Where the cost of a vision model's opinions is from: a function's cost is none of ours."""
    quality = session.settings.quality
    if not quality.judge_is_model or not (jobs.judged | jobs.unjudged).any():
        return []
    return [CostSource.LIST if quality.judge_is_priced else CostSource.UNKNOWN]


def _rejections(file: Path) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for batch in read_batches(file, ["reason"]) if file.exists() else ():
        reasons.update(batch["reason"].to_pylist())
    return dict(reasons.most_common(10))


def _why_stopped(session: Session) -> str | None:
    stop, lost, unsaved = session.engine.stopped, session.recorder.lost_images, session.folder.unsaved_images
    if stop is None:
        return None
    words = [stop.reason]
    if unsaved:
        wait = counted(len(unsaved), "paid image waits", "paid images wait")
        words.append(f"{wait} in {session.folder.unsaved} until a resume uploads them.")
    if lost:
        words.append(f"Neither bucket nor disk could keep {lost:,} images that were paid for.")
    return " ".join(words)


def read_pace(session: Session) -> Pace:
    """The pace of a run, this second included."""
    session.portal.call(session.recorder.write_pace)
    return Pace.read(session.folder.log)


def _run_table(settings: RunSettings, summary: RunSummary, jobs: MeasuredJobs) -> pa.Table:
    """A run as one row of the table that the folder metrics/ is."""
    row = summary.model_dump(exclude=_NOT_OF_A_ROW)
    row |= {
        **jobs.distributions(),
        "started_at": _moment(jobs.first_start_ms),
        "ended_at": datetime.now(UTC),
        "catalog": settings.catalog.series,
        "provider": settings.providers,
        "model": None if settings.routes else settings.api.model,
        "output": settings.output.uri,
        **{f"errors_{name}": summary.errors.get(name, 0) for name in ErrorClass},
    }
    if summary.routes:
        row["routes"] = json.dumps([route.model_dump() for route in summary.routes])
    fields = [(name, _RUN_TYPES.get(name) or _arrow_type(value)) for name, value in row.items()]
    return pa.Table.from_pylist([row], pa.schema(fields))


_NOT_OF_A_ROW = {
    "errors", "rejections", "routes", "refreshed", "columns", "carried", "notes", "run_id", "s3_endpoint_url",
    "s3_bucket_block",
}  # fmt: skip

_RUN_TYPES = {
    "started_at": pa.timestamp("ms", "UTC"),
    "ended_at": pa.timestamp("ms", "UTC"),
    "p50_latency_s": pa.float64(),
    "p95_latency_s": pa.float64(),
    "p50_queued_s": pa.float64(),
    "p95_queued_s": pa.float64(),
    **{f"p{per_cent}_{name}": pa.float64() for name in QUALITY for per_cent in (5, 50, 95)},
}


def _arrow_type(value: object) -> pa.DataType:
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _report(
    session: Session, summary: RunSummary, jobs: MeasuredJobs, metrics: pa.Table, saved: tuple[float, float]
) -> Report:
    settings = session.settings
    shown = [field.name for field in fields(MetricsBucket)]
    rows = metrics.select(shown).to_pylist()
    return Report(
        summary=summary,
        catalog=settings.catalog.path,
        provider=settings.providers,
        model=session.maker.model,
        output=settings.output.uri,
        started=_moment(jobs.first_start_ms),
        ended=_moment(jobs.last_end_ms),
        buckets=[MetricsBucket(**row) for row in rows],
        failures=_failures(session),
        tiles=_tiles(session, jobs, summary.variants),
        generated_usd=jobs.paid(generated=True)[1],
        charged_without_image=jobs.paid(generated=False),
        reused_usd=saved[0],
        duplicates_usd=saved[1],
    )


def _moment(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


def _failures(session: Session) -> list[FailureGroup]:
    groups: dict[tuple[str, str], FailureGroup] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for jobs in read_batches(session.folder.path / "failed.parquet", _FAILURE):
        kinds = list(zip(jobs["error_class"].to_pylist(), jobs["error_code"].to_pylist(), strict=True))
        counted.update(kinds)
        for kind in set(kinds).difference(groups):
            example = jobs.slice(kinds.index(kind), 1).to_pylist()[0]
            groups[kind] = FailureGroup(
                error_class=kind[0],
                error_code=kind[1],
                count=0,
                retryable=example["retryable"],
                example_id=example["id"],
                example_prompt=example["prompt"],
                example_message=example["error_message"] or "",
            )
    return [replace(groups[kind], count=count) for kind, count in sorted(counted.items(), key=_most_first)]


def _most_first(counted: tuple[tuple[str, str], int]) -> tuple[int, tuple[str, str]]:
    return -counted[1], counted[0]


def _tiles(session: Session, jobs: MeasuredJobs, variants: int) -> Sequence[Tile]:
    """Thumbnails: suspect pictures first, up to half of them, then pictures spread evenly over the run."""
    suspect = spread_rows(session.folder.plan, _TILES // 2, variants, jobs.done & jobs.suspect)
    rest = spread_rows(session.folder.plan, _TILES - len(suspect), variants, jobs.done & ~jobs.suspect)
    rows = [*suspect, *rest]
    wanted = pa.array([row["job"] for row in rows], pa.int64())
    images: dict[int, str | None] = {}
    suspects: dict[int, tuple[str, str]] = {}
    columns = ["number", "image", "suspect", "judge_words"]
    for found in read_rows(session.folder.path / "jobs.parquet", columns, "number", wanted):
        numbers = found["number"].to_pylist()
        images.update(zip(numbers, found["image"].to_pylist(), strict=True))
        words = (said or "" for said in found["judge_words"].to_pylist())
        suspects.update(zip(numbers, zip(found["suspect"].to_pylist(), words, strict=True), strict=True))
    return tiles_of(session.bucket, rows, images, suspects=suspects)
