"""The run report: one self-contained HTML file that opens offline."""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import jinja2
from markupsafe import Markup

from tasks import charts
from tasks.charts import Chart, TimeAxis
from tasks.summary import RunSummary


@dataclass(frozen=True, slots=True)
class MetricsBucket:
    """One time bucket of metrics.parquet. Seconds and USD; None where nothing finished in it."""

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


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed jobs of one error code, with one of them as an example."""

    error_class: str
    error_code: str
    count: int
    retryable: bool
    example_id: str
    example_prompt: str
    example_message: str


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the contact sheet; ``thumbnail`` is a small JPEG."""

    id: str
    prompt: str
    seed: int
    width: int
    height: int
    uri: str
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report shows. ``started`` and ``ended`` frame the run."""

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


def render_report(report: Report) -> str:
    """The report as one HTML document."""
    summary = report.summary
    axis = TimeAxis([(_utc(b.bucket_start).timestamp(), b.bucket_s) for b in report.buckets])
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=summary,
            status=_status(summary),
            charts=_charts(axis, report.buckets) if report.buckets else [],
            axis=axis,
            period=_period(report),
            attempts=sorted(summary.errors.items(), key=lambda item: -item[1]),
            savings=_savings(summary),
            run_uri=(summary.metrics or "").rpartition("/")[0]
            or f"{report.output.rstrip('/')}/runs/{summary.run_id}",
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks"),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cut=_cut,
        money=_money,
        price=_price,
        percent=_percent,
        rate=_rate,
        seconds=_seconds,
        duration=_duration,
        utc=_utc,
        base64=lambda content: base64.b64encode(content).decode(),
    )
    return environment


_INVISIBLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Characters that show nothing, or turn text around. Joiners and plain direction marks, which the
scripts that need them need, are not among them."""


def _harmless(value: object) -> object:
    """What a template prints: text with its invisible characters spelled out."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _INVISIBLE.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", value)
    return value


def _cut(text: str, length: int = 300) -> str:
    """Text on one line, its end cut off where it is too long."""
    line = " ".join(text[: 4 * length].split())
    if len(line) <= length and len(text) <= 4 * length:
        return line
    return line[:length].rstrip() + "\u2026"


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _money(usd: float) -> str:
    """A sum: cents, and below ten of them as many digits as it takes."""
    return f"${usd:,.2f}" if abs(usd) >= 0.1 else _price(usd)


def _price(usd: float) -> str:
    """The price of one image: below a dollar, two or three significant digits."""
    if abs(usd) >= 1 or abs(usd) < 1e-9:
        return f"${usd:,.2f}"
    decimals = 2 - math.floor(math.log10(abs(usd)))
    digits = f"{usd:.{decimals}f}"
    return f"${digits.removesuffix('0')}"


def _percent(share: float) -> str:
    if 0 < share < 0.0001:
        return "<0.01%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    if share < 0.1:
        return f"{100 * share:.{2 if share < 0.01 else 3}g}%"
    return f"{100 * share:.1f}".removesuffix(".0") + "%"


def _rate(value: float) -> str:
    decimals = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "\u2013"
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} s"


def _duration(value: float) -> str:
    if value < 60:
        return f"{value:.0f} s" if value >= 10 or value == int(value) else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


@dataclass(frozen=True, slots=True)
class _Status:
    """How the run stands: ``kind`` is ok, part, bad or stopped, and ``word`` says it in one word."""

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
    if summary.stopped:
        reason = _cut(summary.stopped)
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
    return _Status("ok", "Done", f"{counted}." if total == 1 else f"All {total:,} images are done.")


def _period(report: Report) -> str:
    """When the run was, in UTC."""
    if report.started is None:
        return ""
    started, ended = _utc(report.started), _utc(report.ended or report.started)
    end = f"{ended:%H:%M:%S}" if started.date() == ended.date() else f"{ended:%-d %b %Y, %H:%M:%S}"
    return f"{started:%-d %b %Y, %H:%M:%S} \u2013 {end} UTC"


@dataclass(frozen=True, slots=True)
class _Saving:
    """Images that cost nothing, and what they would have cost; ``about`` where that is an estimate."""

    images: int
    usd: float
    about: bool


def _savings(summary: RunSummary) -> dict[str, _Saving]:
    """What reused images and duplicates saved: the sum is known, and shared out by their numbers."""
    images = {"reused": summary.reused, "duplicates": summary.duplicates}
    total = sum(images.values())
    return {
        kind: _Saving(number, summary.saved_usd * number / total if total else 0.0, 0 < number < total)
        for kind, number in images.items()
    }


def _charts(axis: TimeAxis, buckets: Sequence[MetricsBucket]) -> list[Chart]:
    """The four metrics over time, and beneath them what the API let the run ask."""
    draw = _Drawing(axis, buckets)
    finished = [b.images + b.failed for b in buckets]
    shares = [b.error_rate if number else None for b, number in zip(buckets, finished, strict=True)]
    return [
        draw.metric(
            "Throughput",
            "images per minute",
            [b.images_per_minute for b in buckets],
            _rate,
            tick=lambda value, decimals: f"{value:,.{decimals}f}",
            told=[f"{_rate(b.images_per_minute)} images/min" for b in buckets],
            least=1.0,
        ),
        draw.metric(
            "Error rate",
            "% of finished jobs that failed",
            shares,
            _percent,
            tick=lambda value, decimals: f"{100 * value:.{max(0, decimals - 2)}f}%",
            told=[
                f"{_percent(b.error_rate)}, {b.failed:,} of {number:,} failed"
                if number
                else "no job finished"
                for b, number in zip(buckets, finished, strict=True)
            ],
            least=0.01,
        ),
        draw.metric(
            "p95 latency",
            "seconds; p50 fainter",
            [b.p95_latency_s for b in buckets],
            _seconds,
            tick=lambda value, decimals: f"{value:,.{decimals}f}",
            told=[
                "no image finished"
                if b.p95_latency_s is None
                else f"p95 {_seconds(b.p95_latency_s)}, p50 {_seconds(b.p50_latency_s)}"
                for b in buckets
            ],
            least=1.0,
            faint=[b.p50_latency_s for b in buckets],
        ),
        draw.metric(
            "Total cost",
            "USD, cumulative",
            [b.cost_usd_total for b in buckets],
            _money,
            tick=lambda value, decimals: f"${value:,.{decimals if decimals == 0 else max(2, decimals)}f}",
            told=[f"{_money(b.cost_usd_total)} in all, {_money(b.cost_usd)} here" for b in buckets],
            least=0.01,
            cumulative=True,
        ),
        draw.concurrency(),
    ]


class _Drawing:
    """Draws charts of one run's buckets."""

    def __init__(self, axis: TimeAxis, buckets: Sequence[MetricsBucket]) -> None:
        self._axis = axis
        self._buckets = buckets
        moments = [_utc(b.bucket_start) for b in buckets]
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
        told: Sequence[str],
        least: float,
        faint: charts.Values | None = None,
        cumulative: bool = False,
    ) -> Chart:
        """A line over time, with an area beneath it unless there is a second, fainter line."""
        measure = charts.scale([*values, *(faint or [])], tick, least=least)
        points = charts.points(self._axis, measure, values, self._texts(told))
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
        """Steps for the requests allowed at once; under them, where there were any, bars for 429s."""
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
        told = [
            f"{'unknown' if b.concurrency is None else f'{b.concurrency:,}'} at once,"
            f" {b.rate_limited:,} \u00d7 429, {b.requests:,} requests"
            for b in self._buckets
        ]
        title, unit = "Concurrency", "requests at once; bars: answers with a 429"
        return Chart(
            title=title,
            unit=unit,
            stat=stat,
            description=self._description(title, unit, stat),
            ticks=measure.ticks,
            line=charts.step_path(axis, measure, values),
            points=charts.points(axis, measure, values, self._texts(told)),
            bars=charts.bars(axis, under, refused) if most else [],
            bar_ticks=[under.ticks[0], under.ticks[-1]] if most else [],
        )

    def _texts(self, told: Sequence[str]) -> list[str]:
        return [f"{time} \u00b7 {text}" for time, text in zip(self._times, told, strict=True)]

    def _description(self, title: str, unit: str, stat: str) -> str:
        return f"{title} ({unit}) from {self._times[0]} to {self._times[-1]} UTC: {stat}"
