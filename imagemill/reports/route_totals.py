"""The metrics of each route of a run, from its jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imagemill.parquet import read_batches
from imagemill.reports.metrics import QUALITY
from imagemill.runs.summary import RouteTotals
from imagemill.usd import plus

_MEASURE = QUALITY[0]
"""A measure that each picture has whose quality was measured."""

_COLUMNS = [
    _MEASURE, "route", "status", "reused", "latency_s", "cost_usd", "suspect", "attempts", "started_at",
    "finished_at",
]  # fmt: skip


@dataclass(slots=True)
class _Sums:
    images: int = 0
    failed: int = 0
    measured: int = 0
    suspect: int = 0
    requests: int = 0
    cost_usd: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    first_s: float = float("inf")
    last_s: float = 0.0


def route_totals(jobs: Path, makers: Mapping[str, str], stops: Mapping[str, str]) -> list[RouteTotals]:
    """What each route made of a run, by its jobs.parquet; ``makers`` are vendor and model of each route.

    A job counts where its latest request went. ``stops`` say why routes take no more jobs.
    """
    sums: dict[str, _Sums] = defaultdict(_Sums)
    for batch in read_batches(jobs, _COLUMNS):
        for row in batch.to_pylist():
            if row["route"] in makers and not row["reused"]:
                _add(sums[row["route"]], row)
    return [_totals(name, makers[name], sums[name], stops.get(name)) for name in makers]


def _add(sums: _Sums, row: Mapping[str, object]) -> None:
    done, latency_s = row["status"] == "done", row["latency_s"]
    sums.images += done
    sums.failed += row["status"] == "failed"
    sums.measured += done and row[_MEASURE] is not None
    sums.suspect += done and bool(row["suspect"])
    sums.requests += int(str(row["attempts"]))
    sums.cost_usd = plus(sums.cost_usd, float(str(row["cost_usd"])))
    if done and isinstance(latency_s, float):
        sums.latencies_s.append(latency_s)
    for name, at in (("first_s", row["started_at"]), ("last_s", row["finished_at"])):
        if at is not None:
            moment = at.timestamp()  # type: ignore[attr-defined] # a time stamp of Parquet's
            setattr(sums, name, (min if name == "first_s" else max)(getattr(sums, name), moment))


def _totals(name: str, made_by: str, sums: _Sums, stopped: str | None) -> RouteTotals:
    finished, span_s = sums.images + sums.failed, sums.last_s - sums.first_s
    latencies = sums.latencies_s
    return RouteTotals(
        route=name,
        made_by=made_by,
        images=sums.images,
        failed=sums.failed,
        images_per_minute=round(60 * sums.images / span_s, 2) if span_s > 0 else 0.0,
        error_rate=round(sums.failed / finished, 6) if finished else 0.0,
        p50_latency_s=round(float(np.quantile(latencies, 0.5)), 4) if latencies else None,
        p95_latency_s=round(float(np.quantile(latencies, 0.95)), 4) if latencies else None,
        cost_usd=sums.cost_usd,
        measured=sums.measured,
        suspect=sums.suspect,
        requests=sums.requests,
        stopped=stopped,
    )
