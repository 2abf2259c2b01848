"""The dashboard: the metrics of all runs over weeks, in one self-contained HTML file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from statistics import median
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.formatting import money, utc
from imagemill.media_types import HTML
from imagemill.reports import chart_geometry as charts
from imagemill.reports.chart_geometry import Chart, MomentAxis
from imagemill.reports.regressions import (
    METRICS,
    Change,
    Metric,
    Regression,
    find_regressions,
    medians_before,
    series_of,
)
from imagemill.reports.templating import environment
from imagemill.reports.vendors import compare_vendors, routes_of
from imagemill.runs.history import History, RunRow
from imagemill.settings import RegressionSettings
from imagemill.usd import total

MOST_RUNS = 2_000
"""The dashboard shows at most this many runs: a year of daily runs of five catalogs."""

_DAY_S = 86_400

_UNITS = {
    "images_per_minute": "images/min",
    "error_rate": "% of jobs",
    "p95_latency_s": "seconds",
    "cost_per_image_usd": "USD",
    "suspect_rate": "% of pictures",
}


class DashboardSummary(BaseModel):
    """What a dashboard shows. Costs are in USD."""

    model_config = ConfigDict(frozen=True)

    dashboard: str = Field(description="The address of the page.")
    runs: int
    skipped: int = Field(description="Files in metrics/ that are not runs.")
    catalogs: int
    generated: int = Field(description="Images that the runs paid for in total.")
    cost_usd: float
    cost_24h_usd: float = Field(default=0.0, description="The cost of runs that ended in the past 24 hours.")
    regressions: list[Regression] = Field(description="Runs that did worse than earlier runs, latest first.")

    def __str__(self) -> str:
        """The dashboard in one sentence."""
        worse = [run for run in self.regressions if run.latest]
        did_worse = "".join(
            f"; {each.catalog} on {each.provider} did worse: {each.in_words}" for each in worse
        )
        spent = f"{money(self.cost_usd)} in all, {money(self.cost_24h_usd)} of it in the past 24 hours"
        runs = f"{self.runs:,} {'run' if self.runs == 1 else 'runs'}"
        return f"The dashboard shows {runs} with {self.generated:,} images for {spent}{did_worse}."


def publish_dashboard(
    bucket: ImageBucket, history: History, settings: RegressionSettings
) -> DashboardSummary:
    """Write dashboard.html below the output prefix; what it shows."""
    regressions = find_regressions(history.runs, settings)
    now = datetime.now(UTC)
    page = render_dashboard(bucket.uri, history, regressions, settings, now)
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / "dashboard.html"
        file.write_text(page, encoding="utf-8")
        uri = bucket.upload(file, file.name, HTML)
    return DashboardSummary(
        dashboard=uri,
        runs=len(history.runs),
        skipped=history.skipped,
        catalogs=len({run.catalog for run in history.runs}),
        generated=sum(run.generated for run in history.runs),
        cost_usd=total(run.cost_usd for run in history.runs),
        cost_24h_usd=total(
            run.cost_usd for run in history.runs if now - utc(run.ended_at) < timedelta(days=1)
        ),
        regressions=regressions,
    )


def render_dashboard(
    output: str,
    history: History,
    regressions: Sequence[Regression],
    settings: RegressionSettings,
    built_at: datetime,
) -> str:
    """The dashboard as one HTML document."""
    runs = history.runs[-MOST_RUNS:]
    apis = sorted({run.provider for run in runs})
    found = {regression.run_id: regression for regression in regressions}
    drawn = _drawn(runs, found, settings)
    return (
        environment()
        .get_template("dashboard.html.j2")
        .render(
            output=output,
            runs=runs,
            skipped=history.skipped,
            all_runs=len(history.runs),
            settings=settings,
            built_at=built_at,
            apis=apis,
            catalogs=[
                (catalog, list(of_catalog))
                for catalog, of_catalog in groupby(drawn, key=lambda series: series.catalog)
            ],
            latest=[regression for regression in regressions if regression.latest],
            earlier=[regression for regression in regressions if not regression.latest],
            regression_of=found,
            marks=lambda run, name: _mark(found.get(run.run_id), name),
            report_of=lambda run_id: f"runs/{quote(run_id)}/report.html",
            headline=_Headline.of(runs),
            weeks=_weeks(runs),
            vendors=compare_vendors(runs),
            routes_of=routes_of,
            queued=any(run.p95_queued_s for run in runs),
            measured=any(run.measured for run in runs),
        )
    )


@dataclass(frozen=True, slots=True)
class _Headline:
    """Totals over all runs, and medians over runs that generated something."""

    generated: int
    cost_usd: float
    saved_usd: float
    failed: int
    finished: int
    images_per_minute: float | None
    p95_latency_s: float | None

    @classmethod
    def of(cls, runs: Sequence[RunRow]) -> _Headline:
        working = [run for run in runs if run.generated]
        latencies = [run.p95_latency_s for run in working if run.p95_latency_s is not None]
        return cls(
            generated=sum(run.generated for run in runs),
            cost_usd=total(run.cost_usd for run in runs),
            saved_usd=total(run.saved_usd for run in runs),
            failed=sum(run.failed for run in runs),
            finished=sum(run.done + run.failed for run in runs),
            images_per_minute=median(run.images_per_minute for run in working) if working else None,
            p95_latency_s=median(latencies) if latencies else None,
        )


@dataclass(frozen=True, slots=True)
class _Week:
    """The runs of one week, which starts on ``monday``."""

    monday: date
    runs: int
    sums: _Headline


def _weeks(runs: Sequence[RunRow]) -> list[_Week]:
    def monday(run: RunRow) -> date:
        day = run.at.date()
        return day - timedelta(days=day.weekday())

    weeks = [(day, list(of_week)) for day, of_week in groupby(runs, key=monday)]
    return [_Week(day, len(of_week), _Headline.of(of_week)) for day, of_week in reversed(weeks)]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A catalog's runs on one API, and their charts."""

    catalog: str
    provider: str
    runs: Sequence[RunRow]
    axis: MomentAxis
    charts: Sequence[Chart]
    regressed: bool


def _drawn(
    runs: Sequence[RunRow], found: dict[str, Regression], settings: RegressionSettings
) -> list[_Drawn]:
    if not runs:
        return []
    first, last = runs[0].at.timestamp(), runs[-1].at.timestamp()
    margin = max((last - first) * 0.03, _DAY_S / 4)
    drawn = []
    for (catalog, provider), of_series in series_of(runs).items():
        axis = MomentAxis([run.at.timestamp() for run in of_series], begin=first - margin, end=last + margin)
        medians = medians_before(of_series, settings)
        drawn.append(
            _Drawn(
                catalog=catalog,
                provider=provider,
                runs=of_series,
                axis=axis,
                charts=[
                    _chart(metric, axis, of_series, [each[metric.name] for each in medians], found)
                    for metric in METRICS
                    if metric.name != "suspect_rate" or any(run.measured for run in of_series)
                ],
                regressed=any(found[run.run_id].latest for run in of_series if run.run_id in found),
            )
        )
    return drawn


def _chart(
    metric: Metric,
    axis: MomentAxis,
    runs: Sequence[RunRow],
    medians: charts.Values,
    found: dict[str, Regression],
) -> Chart:
    """One point per run, a fainter line for the median of earlier runs, and flags on regressions."""
    words, unit = metric.words, _UNITS[metric.name]
    values = [metric.value(run) if run.generated else None for run in runs]
    measure = charts.scale([*values, *medians], _TICKS[metric.name], least=_LEAST[metric.name])
    texts = [
        f"{run.at:%-d %b %H:%M} \u00b7 {'nothing generated' if value is None else words(value)}"
        for run, value in zip(runs, values, strict=True)
    ]
    points = charts.points(axis, measure, values, texts)
    known = [place for place, value in enumerate(values) if value is not None]
    stat = "no values"
    if known:
        stat = words(values[known[-1]] or 0.0)
        usual = medians[known[-1]]
        if usual is not None:
            stat += f" \u00b7 median {words(usual)}"
    return Chart(
        title=metric.title,
        unit=unit,
        stat=stat,
        description=f"{metric.title} ({unit}) of {len(runs):,} runs, {texts[0]} to {texts[-1]}; last {stat}",
        ticks=measure.ticks,
        line=charts.line_path(axis, measure, values),
        points=points,
        marked=[points[place] for place in known],
        flagged=[points[place] for place in known if _mark(found.get(runs[place].run_id), metric.name)],
        faint_line=charts.line_path(axis, measure, medians),
    )


def _plain(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}"


_TICKS = {
    "images_per_minute": _plain,
    "error_rate": lambda value, decimals: f"{100 * value:.{max(0, decimals - 2)}f}%",
    "suspect_rate": lambda value, decimals: f"{100 * value:.{max(0, decimals - 2)}f}%",
    "p95_latency_s": _plain,
    "cost_per_image_usd": lambda value, decimals: (
        f"${value:,.{decimals if decimals == 0 else max(2, decimals)}f}"
    ),
}
_LEAST = {
    "images_per_minute": 1.0,
    "error_rate": 0.01,
    "p95_latency_s": 1.0,
    "cost_per_image_usd": 0.01,
    "suspect_rate": 0.01,
}


def _mark(regression: Regression | None, metric: str) -> Change | None:
    """The change in a metric that makes a run a regression, if any."""
    changes = regression.changes if regression else ()
    return next((change for change in changes if change.metric == metric), None)
