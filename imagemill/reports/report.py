"""The run report: one self-contained HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from imagemill.formatting import cut, money, percent, rate, seconds, utc
from imagemill.reports import chart_geometry as charts
from imagemill.reports.chart_geometry import Chart, TimeAxis
from imagemill.reports.contact_sheet import Tile
from imagemill.reports.templating import environment
from imagemill.runs.summary import RunSummary


@dataclass(frozen=True, slots=True)
class MetricsBucket:
    """One time bucket of metrics.parquet, in seconds and USD; None if nothing finished in it."""

    bucket_start: datetime
    bucket_s: int
    images: int
    images_per_minute: float
    failed: int
    error_rate: float
    p50_latency_s: float | None
    p95_latency_s: float | None
    cost_usd: float
    cost_usd_total: float
    requests: int
    rate_limited: int
    retries: int
    concurrency: int | None
    p50_queued_s: float | None = None
    p95_queued_s: float | None = None


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The failed jobs with one error code, and an example."""

    error_class: str
    error_code: str
    count: int
    retryable: bool
    example_id: str
    example_prompt: str
    example_message: str


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report.

    ``charged_without_image`` are the jobs that were charged and have no image of this run, and how much they
    were charged.
    """

    summary: RunSummary
    catalog: str
    provider: str
    model: str
    output: str
    started: datetime | None
    ended: datetime | None
    buckets: Sequence[MetricsBucket]
    failures: Sequence[FailureGroup]
    tiles: Sequence[Tile]
    generated_usd: float
    charged_without_image: tuple[int, float]
    reused_usd: float
    duplicates_usd: float


def render_report(report: Report) -> str:
    """The report as one HTML document."""
    summary = report.summary
    axis = TimeAxis([(utc(b.bucket_start).timestamp(), b.bucket_s) for b in report.buckets])
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=summary,
            status=_status(summary),
            charts=_charts(axis, report.buckets) if report.buckets else [],
            axis=axis,
            queued=any(bucket.p95_queued_s for bucket in report.buckets),
            period=_period(report),
            attempts=sorted(summary.errors.items(), key=lambda item: -item[1]),
            run_uri=(summary.metrics or "").rpartition("/")[0]
            or f"{report.output.rstrip('/')}/runs/{summary.run_id}",
        )
    )


@dataclass(frozen=True, slots=True)
class _Status:
    """The state of the run: ``kind`` is ok, part, bad or stopped; ``word`` is its title."""

    kind: str
    word: str
    sentence: str
    more: str = ""


def _status(summary: RunSummary) -> _Status:
    """The run in one sentence, worst news first."""
    total, done = summary.unique, summary.done
    counted = f"{done:,} of {total:,} images are done"
    if total == 1:
        counted = "The one image is done" if done else "The one image is not done"
    failed = f"; {summary.failed:,} failed" if summary.failed else ""
    failed += f"; {summary.rejected_in_review_in_words}" if summary.rejected_in_review else ""
    if summary.stopped:
        reason = cut(summary.stopped)
        reason += "" if reason.endswith((".", "!", "?", "\u2026")) else "."
        resume = f"{summary.pending:,} pending; resume with run id {summary.run_id}."
        sentence = f"Stopped early: {reason} {resume}"
        return _Status("stopped", "Stopped", sentence, f"{counted}{failed}.")
    if summary.pending:
        pending = f"; {summary.pending:,} pending: resume with run id {summary.run_id}."
        return _Status("stopped", "Unfinished", f"{counted}{failed}{pending}")
    if not total:
        why = "No row of the catalog became a job." if summary.rows else "The catalog is empty."
        return _Status("part", "Nothing to do", why)
    if summary.failed:
        kind, word = ("part", "Done with failures") if done else ("bad", "Failed")
        return _Status(kind, word, f"{counted}{failed}.")
    if total == 1 or failed:
        return _Status("ok", "Done", f"{counted}{failed}.")
    return _Status("ok", "Done", f"All {total:,} images are done.")


def _period(report: Report) -> str:
    """When the run was, in UTC."""
    if report.started is None:
        return ""
    started, ended = utc(report.started), utc(report.ended or report.started)
    end = f"{ended:%H:%M:%S}" if started.date() == ended.date() else f"{ended:%-d %b %Y, %H:%M:%S}"
    return f"{started:%-d %b %Y, %H:%M:%S} \u2013 {end} UTC"


def _charts(axis: TimeAxis, buckets: Sequence[MetricsBucket]) -> list[Chart]:
    """The four metrics over time, then the concurrency."""
    draw = _Drawing(axis, buckets)
    finished = [b.images + b.failed for b in buckets]
    shares = [b.error_rate if number else None for b, number in zip(buckets, finished, strict=True)]
    return [
        draw.metric(
            "Throughput",
            "images per minute",
            [b.images_per_minute for b in buckets],
            rate,
            tick=lambda value, decimals: f"{value:,.{decimals}f}",
            texts=[f"{rate(b.images_per_minute)} images/min" for b in buckets],
            least=1.0,
        ),
        draw.metric(
            "Error rate",
            "% of finished jobs that failed",
            shares,
            percent,
            tick=lambda value, decimals: f"{100 * value:.{max(0, decimals - 2)}f}%",
            texts=[
                f"{percent(b.error_rate)}, {b.failed:,} of {number:,} failed" if number else "no job finished"
                for b, number in zip(buckets, finished, strict=True)
            ],
            least=0.01,
        ),
        draw.metric(
            "p95 latency",
            "seconds; p50 is the fainter line",
            [b.p95_latency_s for b in buckets],
            seconds,
            tick=lambda value, decimals: f"{value:,.{decimals}f}",
            texts=[
                "no image finished"
                if b.p95_latency_s is None
                else f"p95 {seconds(b.p95_latency_s)}, p50 {seconds(b.p50_latency_s)}{_queued(b)}"
                for b in buckets
            ],
            least=1.0,
            faint=[b.p50_latency_s for b in buckets],
        ),
        draw.metric(
            "Total cost",
            "USD, cumulative",
            [b.cost_usd_total for b in buckets],
            money,
            tick=lambda value, decimals: f"${value:,.{decimals if decimals == 0 else max(2, decimals)}f}",
            texts=[
                f"{money(b.cost_usd_total)} in total, {money(b.cost_usd)} in this interval" for b in buckets
            ],
            least=0.01,
            cumulative=True,
        ),
        draw.concurrency(),
    ]


def _queued(bucket: MetricsBucket) -> str:
    """The time in the vendor's queue, where it has one."""
    return f"; in the vendor's queue p95 {seconds(bucket.p95_queued_s)}" if bucket.p95_queued_s else ""


class _Drawing:
    """Draws charts of one run's buckets."""

    def __init__(self, axis: TimeAxis, buckets: Sequence[MetricsBucket]) -> None:
        self._axis = axis
        self._buckets = buckets
        moments = [utc(b.bucket_start) for b in buckets]
        one_day = moments[0].date() == moments[-1].date()
        self._times = [f"{m:%H:%M:%S}" if one_day else f"{m:%-d %b %H:%M:%S}" for m in moments]

    def metric(
        self,
        title: str,
        unit: str,
        values: charts.Values,
        words: Callable[[float], str],
        *,
        tick: Callable[[float, int], str],
        texts: Sequence[str],
        least: float,
        faint: charts.Values | None = None,
        cumulative: bool = False,
    ) -> Chart:
        """A line over time, with an area below it or a second, fainter line."""
        measure = charts.scale([*values, *(faint or [])], tick, least=least)
        points = charts.points(self._axis, measure, values, self._texts(texts))
        known = [(value, -i) for i, value in enumerate(values) if value is not None]
        if not known:
            stat, marked = "no values", []
        else:
            highest, last = max(known), known[-1]
            stat = words(last[0])
            if cumulative:
                stat = f"total {words(last[0])}"
            elif len(known) > 1:
                stat = f"highest {words(highest[0])} \u00b7 last {stat}"
            marked = [points[-place] for place in sorted({last[1], *([] if cumulative else [highest[1]])})]
        return Chart(
            title=title,
            unit=unit,
            stat=stat,
            description=self._description(title, unit, stat),
            ticks=measure.ticks,
            line=charts.line_path(self._axis, measure, values),
            points=points,
            marked=marked,
            area="" if faint else charts.area_path(self._axis, measure, values),
            faint_line=charts.line_path(self._axis, measure, faint) if faint else "",
        )

    def concurrency(self) -> Chart:
        """Steps for the concurrency in force, and below them bars for 429s, if there were any."""
        axis, refused = self._axis, [b.rate_limited for b in self._buckets]
        values = [b.concurrency for b in self._buckets]
        most = max(refused)

        def tick(value: float, _: int) -> str:
            return f"{value:,.0f}"

        band = (0.0, 58.0) if most else (0.0, 100.0)
        measure = charts.scale(values, tick, least=1.0, whole=True, band=band)
        under = charts.scale(refused, tick, least=1.0, whole=True, band=(72.0, 100.0))
        known = [value for value in values if value is not None]
        stat = f"highest {max(known):,} \u00b7 last {known[-1]:,}" if known else "no values"
        stat += f" \u00b7 {sum(refused):,} \u00d7 429" if most else " \u00b7 no 429"
        texts = [
            f"concurrency {'unknown' if b.concurrency is None else f'{b.concurrency:,}'},"
            f" {b.rate_limited:,} \u00d7 429, {b.requests:,} requests"
            for b in self._buckets
        ]
        title, unit = "Concurrency", "concurrent requests; bars: 429s"
        return Chart(
            title=title,
            unit=unit,
            stat=stat,
            description=self._description(title, unit, stat),
            ticks=measure.ticks,
            line=charts.step_path(axis, measure, values),
            points=charts.points(axis, measure, values, self._texts(texts)),
            bars=charts.bars(axis, under, refused) if most else [],
            bar_ticks=[under.ticks[0], under.ticks[-1]] if most else [],
        )

    def _texts(self, texts: Sequence[str]) -> list[str]:
        return [f"{time} \u00b7 {text}" for time, text in zip(self._times, texts, strict=True)]

    def _description(self, title: str, unit: str, stat: str) -> str:
        return f"{title} ({unit}) from {self._times[0]} to {self._times[-1]} UTC: {stat}"
