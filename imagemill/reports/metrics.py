"""The metrics of a run: throughput, error rate, latency and cost, per time bucket and for the whole run.

Jobs are held as arrays, at about 50 bytes per job.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.engine.job_log import lines_with
from imagemill.parquet import read_batches
from imagemill.takes import REJECTED
from imagemill.usd import PICOS, of_picos

BUCKET_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MOST_BUCKETS = 240
PAUSE_S = 5.0
"""A longer gap in the log is a pause between two sessions of a run, not part of the run."""

QUALITY = ("sharpness", "contrast", "brightness", "colourfulness", "flat")
"""The measures whose distributions are kept."""

METRICS_SCHEMA = pa.schema(
    [
        ("bucket_start", pa.timestamp("ms", "UTC")),
        ("bucket_s", pa.int32()),
        ("images", pa.int64()),
        ("images_per_minute", pa.float64()),
        ("failed", pa.int64()),
        ("error_rate", pa.float64()),
        ("p50_latency_s", pa.float64()),
        ("p95_latency_s", pa.float64()),
        ("cost_usd", pa.float64()),
        ("cost_usd_total", pa.float64()),
        ("requests", pa.int64()),
        ("rate_limited", pa.int64()),
        ("retries", pa.int64()),
        ("concurrency", pa.int32()),
        ("duplicates_saved", pa.int64()),
        ("saved_usd", pa.float64()),
        ("p50_queued_s", pa.float64()),
        ("p95_queued_s", pa.float64()),
        ("measured", pa.int64()),
        ("suspect", pa.int64()),
        *((f"p50_{name}", pa.float64()) for name in QUALITY),
    ]
)

Floats: TypeAlias = npt.NDArray[np.float64]
Whole: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

_NEVER = -1
_COUNTED = (b'"event":"pace"', b'"event":"attempt_failed"')
_PACE = ("requests", "rate_limited", "retries", "concurrency")


@dataclass(frozen=True, slots=True)
class MeasuredJobs:
    """The jobs of a run, by number. Times are in Unix milliseconds or -1, costs in USD, latencies in seconds.

    The latency, and the time in the vendor's queue, is NaN if there is no image; so are measures of quality
    if it was not measured. A picture that a person rejected is neither done nor failed.
    """

    done: Flags
    failed: Flags
    reused: Flags
    latency_s: Floats
    queued_s: Floats
    cost_usd: Floats
    judge_usd: Floats
    started_ms: Whole
    finished_ms: Whole
    suspect: Flags
    judged: Flags
    unjudged: Flags
    quality: dict[str, Floats]
    cost_sources: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, file: Path) -> MeasuredJobs:
        """Read them from jobs.parquet."""
        jobs, start = cls.none(pq.read_metadata(file).num_rows), 0
        columns = [
            "status",
            "reused",
            "latency_s",
            "queued_s",
            "cost_usd",
            "judge_usd",
            "cost_source",
            "error_code",
            "started_at",
            "finished_at",
            "suspect",
            "judge_score",
            "judge_failure",
            *QUALITY,
        ]
        for batch in read_batches(file, columns):
            rows = slice(start, start := start + batch.num_rows)
            jobs.done[rows] = pc.equal(batch["status"], "done")
            is_rejected = pc.fill_null(pc.equal(batch["error_code"], REJECTED), fill_value=False)
            jobs.failed[rows] = pc.and_not(pc.equal(batch["status"], "failed"), is_rejected)
            jobs.reused[rows] = batch["reused"]
            jobs.latency_s[rows] = batch["latency_s"].fill_null(np.nan)
            jobs.queued_s[rows] = batch["queued_s"].fill_null(np.nan)
            jobs.cost_usd[rows] = batch["cost_usd"]
            jobs.judge_usd[rows] = batch["judge_usd"]
            jobs.cost_sources.update(pc.unique(batch["cost_source"]).drop_null().to_pylist())
            jobs.started_ms[rows] = batch["started_at"].cast(pa.int64()).fill_null(_NEVER)
            jobs.finished_ms[rows] = batch["finished_at"].cast(pa.int64()).fill_null(_NEVER)
            is_suspect = pc.not_equal(batch["suspect"], "")
            jobs.suspect[rows] = pc.and_(pc.equal(batch["status"], "done"), is_suspect)
            jobs.judged[rows] = batch["judge_score"].is_valid()
            jobs.unjudged[rows] = batch["judge_failure"].is_valid()
            for name, values in jobs.quality.items():
                values[rows] = batch[name].fill_null(np.nan)
        return jobs

    @classmethod
    def none(cls, number: int = 0) -> MeasuredJobs:
        """This many jobs of which nothing is known."""
        return cls(
            done=np.zeros(number, bool),
            failed=np.zeros(number, bool),
            reused=np.zeros(number, bool),
            latency_s=np.full(number, np.nan),
            queued_s=np.full(number, np.nan),
            cost_usd=np.zeros(number),
            judge_usd=np.zeros(number),
            started_ms=np.full(number, _NEVER),
            finished_ms=np.full(number, _NEVER),
            suspect=np.zeros(number, bool),
            judged=np.zeros(number, bool),
            unjudged=np.zeros(number, bool),
            quality={name: np.full(number, np.nan, np.float32) for name in QUALITY},
        )

    def paid(self, *, generated: bool) -> tuple[int, float]:
        """How many of the jobs with, or without, an image of this run were charged, and how much.

        What the judge cost is not counted.
        """
        picos = np.rint(self.cost_usd * PICOS) - np.rint(self.judge_usd * PICOS)
        of_these = picos[(self.done & ~self.reused) == generated]
        return int(np.count_nonzero(of_these)), of_picos(int(of_these.sum()))

    def latency_quantile(self, share: float) -> float | None:
        """A quantile over all generated images; None if there are none."""
        return self._quantile(self.latency_s, share)

    def queued_quantile(self, share: float) -> float | None:
        """A quantile of the time in the vendor's queue, over all generated images; None if there are none."""
        return self._quantile(self.queued_s, share)

    @property
    def measured(self) -> int:
        """How many pictures were measured."""
        return int(np.count_nonzero(~np.isnan(self.quality[QUALITY[0]])))

    def distributions(self) -> dict[str, float | None]:
        """The 5th, 50th and 95th percentile of each measure; None if nothing was measured."""
        found: dict[str, float | None] = {}
        for name, values in self.quality.items():
            known = values[~np.isnan(values)]
            for per_cent in (5, 50, 95):
                quantile = float(np.percentile(known, per_cent)) if known.size else None
                found[f"p{per_cent}_{name}"] = None if quantile is None else round(quantile, 4)
        return found

    def _quantile(self, seconds: Floats, share: float) -> float | None:
        known = seconds[self.done & ~np.isnan(seconds)]
        return round(float(np.quantile(known, share)), 4) if known.size else None

    @property
    def first_start_ms(self) -> int | None:
        """When the first request was sent."""
        started = self.started_ms[self.started_ms != _NEVER]
        return int(started.min()) if started.size else None

    @property
    def last_end_ms(self) -> int | None:
        """When the last job ended."""
        return int(self.finished_ms.max()) if (self.finished_ms != _NEVER).any() else None


@dataclass(frozen=True, slots=True)
class Pace:
    """A run's pace from log.jsonl: one entry per second and process, and errors by class."""

    at_ms: Whole
    worker: Whole
    requests: Whole
    rate_limited: Whole
    retries: Whole
    concurrency: Whole
    errors: Counter[str]

    @classmethod
    def read(cls, log: Path) -> Pace:
        """Read it from log.jsonl."""
        moments, workers = array("q"), array("q")
        numbers = [array("q") for _ in _PACE]
        names: dict[str, int] = {}
        errors: Counter[str] = Counter()
        for line in chain.from_iterable(lines_with(log, kind) for kind in _COUNTED):
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # cut short by a kill
            if event["event"] == "pace":
                moments.append(round(datetime.fromisoformat(event["at"]).timestamp() * 1000))
                workers.append(names.setdefault(event.get("worker", ""), len(names)))
                for name, values in zip(_PACE, numbers, strict=True):
                    values.append(event[name])
            elif event["event"] == "attempt_failed":
                errors[event["error_class"]] += 1
        at_ms, worker, *columns = (np.frombuffer(values, np.int64) for values in (moments, workers, *numbers))
        return cls(at_ms, worker, **dict(zip(_PACE, columns, strict=True)), errors=errors)


@dataclass(frozen=True, slots=True)
class Savings:
    """For each job, by number: its duplicate rows, and what they and its image would have cost, in USD."""

    duplicates: Whole
    saved_usd: Floats
    price_usd: Floats

    @classmethod
    def read(cls, plan: Path, jobs: int, price_usd: Callable[[int, int, int, str], float]) -> Savings:
        """Read them from plan.parquet of ``jobs`` jobs; ``price_usd`` takes width, height, steps, params."""
        rows, price = np.zeros(jobs, np.int64), np.zeros(jobs)
        names = ["job", "width", "height", "steps"]
        if "params" in pq.read_schema(plan).names:  # not in the plan of an earlier version
            names.append("params")
        for batch in read_batches(plan, names):
            planned = batch.filter(batch["job"].is_valid())
            numbers = planned["job"].to_numpy()
            np.add.at(rows, numbers, 1)
            texts = planned["params"] if "params" in names else pa.nulls(planned.num_rows, pa.string())
            params = texts.fill_null("").dictionary_encode()
            sides = [planned[name].to_numpy() for name in ("width", "height", "steps")]
            which, several = _kinds(*sides, params.indices.to_numpy())
            words = params.dictionary.to_pylist()
            prices = [
                price_usd(width, height, steps, words[code])
                for width, height, steps, code in several.tolist()
            ]
            if numbers.size:
                price[numbers] = np.array(prices)[which]
        duplicates = np.maximum(rows - 1, 0)
        return cls(duplicates, duplicates * price, price)

    def usd(self, jobs: MeasuredJobs) -> tuple[float, float]:
        """What images that were in the bucket would have cost, and what duplicate rows would have."""
        reused = self.price_usd[jobs.done & jobs.reused]
        of_reused, of_duplicates = (int(np.rint(usd * PICOS).sum()) for usd in (reused, self.saved_usd))
        return of_picos(of_reused), of_picos(of_duplicates)


def _kinds(*columns: Whole) -> tuple[Whole, Whole]:
    """Which combination of values each row has, and these combinations, a row each; mostly there is one."""
    if len(columns[0]) and all((column == column[0]).all() for column in columns):
        return np.zeros(len(columns[0]), np.int64), np.array([[column[0] for column in columns]])
    several, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return which.reshape(-1), several


def working_s(jobs: MeasuredJobs, pace: Pace) -> float:
    """The working time in seconds: from the first to the last event, without pauses."""
    asked = ~jobs.reused
    moments = np.concatenate([pace.at_ms, jobs.started_ms[asked], jobs.finished_ms[asked]])
    moments = np.sort(moments[moments != _NEVER])
    if len(moments) < 2:
        return 0.0
    gaps = np.diff(moments)
    return max(float(gaps[gaps <= PAUSE_S * 1000].sum()) / 1000, 0.001)


def metrics_table(jobs: MeasuredJobs, pace: Pace, savings: Savings) -> pa.Table:
    """The metrics per time bucket, omitting buckets in which nothing happened."""
    finished = np.flatnonzero((jobs.finished_ms != _NEVER) & ~jobs.reused)
    at_ms = jobs.finished_ms[finished]
    times = np.concatenate([at_ms, pace.at_ms])
    if not times.size:
        return METRICS_SCHEMA.empty_table()
    span = (times.max() - times.min()) / 1000
    width = next((w for w in BUCKET_WIDTHS_S if span / w < MOST_BUCKETS), BUCKET_WIDTHS_S[-1])
    buckets, place = np.unique(times // (width * 1000), return_inverse=True)
    of_job, of_second = place[: len(finished)], place[len(finished) :]

    def total(place: Whole, values: npt.NDArray[np.generic] | None = None) -> Floats:
        # Rounded to twelve digits, so that the order of summation does not matter.
        return np.bincount(place, values, len(buckets)).astype(float).round(12)

    done = jobs.done[finished]
    of_image, image = of_job[done], finished[done]
    images, failed = total(of_image), total(of_job[jobs.failed[finished]])
    p50, p95 = _quantiles(of_image, jobs.latency_s[image], len(buckets))
    p50_queued, p95_queued = _quantiles(of_image, jobs.queued_s[image], len(buckets))
    # In whole units, so that each sum equals its rows.
    cost = np.bincount(of_job, np.rint(jobs.cost_usd[finished] * PICOS), len(buckets))
    columns = {
        "bucket_start": buckets * width * 1000,
        "bucket_s": np.full(len(buckets), width),
        "images": images,
        "images_per_minute": images * (60.0 / width),
        "failed": failed,
        "error_rate": failed / np.maximum(images + failed, 1),
        "p50_latency_s": p50,
        "p95_latency_s": p95,
        "cost_usd": cost / PICOS,
        "cost_usd_total": cost.cumsum() / PICOS,
        "requests": total(of_second, pace.requests),
        "rate_limited": total(of_second, pace.rate_limited),
        "retries": total(of_second, pace.retries),
        "concurrency": _concurrency(of_second, pace, len(buckets)),
        "duplicates_saved": total(of_image, savings.duplicates[image]),
        "saved_usd": total(of_image, savings.saved_usd[image]),
        "p50_queued_s": p50_queued,
        "p95_queued_s": p95_queued,
        "measured": total(of_image, ~np.isnan(jobs.quality[QUALITY[0]][image])),
        "suspect": total(of_image, jobs.suspect[image]),
        **{
            f"p50_{name}": _quantiles(of_image, values[image], len(buckets))[0]
            for name, values in jobs.quality.items()
        },
    }
    arrays = [pa.array(columns[f.name], from_pandas=True).cast(f.type) for f in METRICS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=METRICS_SCHEMA)


def _quantiles(place: Whole, seconds: Floats, buckets: int) -> tuple[Floats, Floats]:
    """The 50th and 95th percentile of each bucket; NaN if it has no values."""
    known = ~np.isnan(seconds)
    place, seconds = place[known], seconds[known]
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(buckets + 1))
    found = np.full((2, buckets), np.nan)
    for bucket, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            found[:, bucket] = np.quantile(seconds[order[first:last]], [0.5, 0.95])
    return found[0], found[1]


def _concurrency(of_second: Whole, pace: Pace, buckets: int) -> Floats:
    """The highest concurrency of each bucket, summed over processes; NaN if unknown."""
    workers = int(pace.worker.max(initial=0)) + 1
    highest = np.full((buckets, workers), np.nan)
    np.fmax.at(highest, (of_second, pace.worker), pace.concurrency)
    return np.where(np.isnan(highest).all(axis=1), np.nan, np.nansum(highest, axis=1))
