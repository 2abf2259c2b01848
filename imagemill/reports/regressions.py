"""Regressions: runs that did clearly worse than earlier runs of the same catalog and API."""

from __future__ import annotations

import bisect
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from imagemill.formatting import percent, price, rate, seconds
from imagemill.runs.history import RunRow
from imagemill.settings import RegressionSettings


@dataclass(frozen=True, slots=True)
class Metric:
    """What runs are compared by: a name, whether more is worse, its value in a run, and its format."""

    name: str
    title: str
    more_is_worse: bool
    value: Callable[[RunRow], float | None]
    words: Callable[[float], str]


METRICS = (
    Metric("images_per_minute", "Throughput", False, lambda run: run.images_per_minute, rate),
    Metric("error_rate", "Error rate", True, lambda run: run.error_rate, percent),
    Metric("p95_latency_s", "p95 latency", True, lambda run: run.p95_latency_s, seconds),
    Metric("cost_per_image_usd", "Cost per image", True, lambda run: run.cost_per_image_usd, price),
    Metric("suspect_rate", "Suspect rate", True, lambda run: run.suspect_rate, percent),
)
METRIC_NAMED = {metric.name: metric for metric in METRICS}


class Change(BaseModel):
    """One metric of a run, compared with the median of earlier runs."""

    model_config = ConfigDict(frozen=True)

    metric: str
    value: float
    median: float
    change: float | None = Field(description="(value - median) / median; None if the median is 0.")

    @property
    def title(self) -> str:
        """The metric's display name."""
        return METRIC_NAMED[self.metric].title

    @property
    def in_words(self) -> str:
        """The value, and its distance from the median."""
        words = METRIC_NAMED[self.metric].words
        if self.change is None:
            return f"{words(self.value)}, the median was {words(self.median)}"
        share = f"{percent(abs(self.change))} {'above' if self.change > 0 else 'below'}"
        return f"{words(self.value)}, {share} the median of {words(self.median)}"


class Regression(BaseModel):
    """A run that did worse, and the metrics that got worse."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    at: datetime
    catalog: str
    provider: str
    runs_before: int = Field(description="The number of earlier runs.")
    latest: bool = Field(description="Whether this is the latest run of its catalog and API.")
    changes: tuple[Change, ...]

    @property
    def in_words(self) -> str:
        """All that got worse, in one line."""
        return "; ".join(f"{change.title.lower()} {change.in_words}" for change in self.changes)

    @property
    def resource_id(self) -> str:
        """The Prefect resource id for this catalog and API."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.catalog.lower()).strip("-")
        return f"imagemill.catalog.{slug}.{self.provider}"


Series = dict[tuple[str, str], list[RunRow]]
"""Runs by catalog and API."""


def series_of(runs: Sequence[RunRow]) -> Series:
    """Runs by catalog and API, each in the order given."""
    series: Series = defaultdict(list)
    for run in runs:
        series[run.catalog, run.provider].append(run)
    return dict(sorted(series.items()))


def find_regressions(runs: Sequence[RunRow], settings: RegressionSettings) -> list[Regression]:
    """The regressions among runs in order of time; latest first.

    Runs that generated nothing are ignored.
    """
    found = []
    for (catalog, provider), of_series in series_of(runs).items():
        counted = [run for run in of_series if run.generated]
        for place, (run, medians) in enumerate(zip(counted, medians_before(counted, settings), strict=True)):
            changes = [_change(metric, run, medians[metric.name], settings) for metric in METRICS]
            worse = tuple(change for change in changes if change is not None)
            if worse:
                found.append(
                    Regression(
                        run_id=run.run_id,
                        at=run.at,
                        catalog=catalog,
                        provider=provider,
                        runs_before=place,
                        latest=place == len(counted) - 1,
                        changes=worse,
                    )
                )
    return sorted(found, key=lambda regression: (regression.at, regression.run_id), reverse=True)


def medians_before(runs: Sequence[RunRow], settings: RegressionSettings) -> list[dict[str, float | None]]:
    """For each run of a series, the median of each metric over earlier runs; None if there are too few."""
    before: dict[str, list[float]] = {metric.name: [] for metric in METRICS}
    medians = []
    for run in runs:
        medians.append(
            {
                name: _median(values) if len(values) >= settings.runs_before else None
                for name, values in before.items()
            }
        )
        if run.generated:
            for metric in METRICS:
                value = metric.value(run)
                if value is not None:
                    bisect.insort(before[metric.name], value)
    return medians


def _change(metric: Metric, run: RunRow, median: float | None, settings: RegressionSettings) -> Change | None:
    """The metric's change, if it is a regression."""
    value = metric.value(run)
    if value is None or median is None:
        return None
    if metric.more_is_worse:
        worse = value > median * (1 + settings.share)
    else:
        worse = value < median * (1 - settings.share)
    counted = {"error_rate": run.done + run.failed, "suspect_rate": run.measured}
    if not worse or (metric.name in counted and _is_chance(value, median, counted[metric.name])):
        return None
    change = (value - median) / median if median else None
    return Change(metric=metric.name, value=value, median=median, change=change)


def _is_chance(rate: float, median: float, counted: int) -> bool:
    """Whether a higher rate of so many jobs may be chance: up to two more, or two standard deviations."""
    expected = median * counted
    return rate * counted <= expected + 2 * math.sqrt(expected) + 2


def _median(ascending: Sequence[float]) -> float:
    middle = len(ascending) // 2
    return ascending[middle] if len(ascending) % 2 else (ascending[middle - 1] + ascending[middle]) / 2
