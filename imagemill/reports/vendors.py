"""Vendors and their models, compared over weeks: what each made in runs over one API and over several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from statistics import median

from pydantic import TypeAdapter, ValidationError

from imagemill.runs.history import RunRow
from imagemill.runs.summary import RouteTotals
from imagemill.usd import total

_ROUTES = TypeAdapter(list[RouteTotals])


@dataclass(frozen=True, slots=True)
class Vendor:
    """What a vendor's model made in some time. ``best`` names the metrics in which no other did better.

    Images per minute and p95 latency are medians of its runs, costs are in USD. A metric is None if it is
    unknown.
    """

    made_by: str
    runs: int
    images: int
    cost_usd: float
    images_per_minute: float | None
    error_rate: float | None
    p95_latency_s: float | None
    cost_per_image_usd: float | None
    suspect_rate: float | None
    best: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Period:
    """The vendors at work in one week, which starts on ``monday``; None: in all weeks."""

    monday: date | None
    vendors: Sequence[Vendor]


_METRICS: dict[str, Callable[[Iterable[float]], float]] = {
    "images_per_minute": max,
    "error_rate": min,
    "p95_latency_s": min,
    "cost_per_image_usd": min,
    "suspect_rate": min,
}
"""The metrics that vendors are compared by, and which value is the best."""


def compare_vendors(runs: Sequence[RunRow]) -> list[Period]:
    """All weeks together, then each week, the latest first; nothing where one vendor made everything."""
    weeks: dict[date, dict[str, list[RouteTotals]]] = defaultdict(lambda: defaultdict(list))
    every: dict[str, list[RouteTotals]] = defaultdict(list)
    for run in runs:
        day = run.at.date()
        for made in parts_of(run):
            weeks[day - timedelta(days=day.weekday())][made.made_by].append(made)
            every[made.made_by].append(made)
    if len(every) < 2:
        return []
    return [_period(None, every), *(_period(monday, weeks[monday]) for monday in sorted(weeks, reverse=True))]


def parts_of(run: RunRow) -> list[RouteTotals]:
    """What each vendor's model made of a run; those that made nothing and failed at nothing are left out."""
    parts = routes_of(run) if run.routes else [_only(run)]
    return [part for part in parts if part.images or part.failed]


def routes_of(run: RunRow) -> list[RouteTotals]:
    """The routes of a run over several; none if it was over one API."""
    try:
        return _ROUTES.validate_json(run.routes) if run.routes else []
    except ValidationError:  # damaged, or not ours
        return []


def _only(run: RunRow) -> RouteTotals:
    return RouteTotals(
        route="",
        made_by=f"{run.provider}/{run.model}" if run.model else run.provider,
        images=run.generated,
        failed=run.failed,
        images_per_minute=run.images_per_minute,
        error_rate=run.error_rate,
        p50_latency_s=None,
        p95_latency_s=run.p95_latency_s,
        cost_usd=run.cost_usd,
        measured=run.measured,
        suspect=run.suspect,
        requests=0,
    )


def _period(monday: date | None, made: dict[str, list[RouteTotals]]) -> Period:
    vendors = [_vendor(name, parts) for name, parts in sorted(made.items())]
    best: dict[str, set[str]] = defaultdict(set)
    for metric, best_of in _METRICS.items():
        values = {v.made_by: value for v in vendors if (value := getattr(v, metric)) is not None}
        for name, value in values.items():
            if len(set(values.values())) > 1 and value == best_of(values.values()):
                best[name].add(metric)
    return Period(monday, [replace(vendor, best=frozenset(best[vendor.made_by])) for vendor in vendors])


def _vendor(name: str, parts: Sequence[RouteTotals]) -> Vendor:
    images, failed = sum(part.images for part in parts), sum(part.failed for part in parts)
    working = [part for part in parts if part.images]
    latencies = [part.p95_latency_s for part in working if part.p95_latency_s is not None]
    measured, cost_usd = sum(part.measured for part in parts), total(part.cost_usd for part in parts)
    return Vendor(
        made_by=name,
        runs=len(parts),
        images=images,
        cost_usd=cost_usd,
        images_per_minute=median(part.images_per_minute for part in working) if working else None,
        error_rate=failed / (images + failed) if images + failed else None,
        p95_latency_s=median(latencies) if latencies else None,
        cost_per_image_usd=cost_usd / images if images else None,
        suspect_rate=min(1.0, sum(part.suspect for part in parts) / measured) if measured else None,
    )
