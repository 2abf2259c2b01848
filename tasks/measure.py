"""Measures a run: the four metrics per time bucket and for the whole run, its summary and its report."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from blocks.errors import ErrorClass, StoreUnavailableError
from blocks.stores import JobTotals
from tasks.manifest import Changes
from tasks.report import FailureGroup, MetricsBucket, Report, Tile, render_report
from tasks.run_folder import PARQUET, PlanCounts
from tasks.session import Session, open_session
from tasks.settings import RunSettings
from tasks.summary import RunSummary
from tasks.verb import verb

BUCKET_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
MOST_BUCKETS = 240
PAUSE_S = 5.0
"""A gap in the log longer than this is a pause between two sittings of a run, not part of it."""

_MEASURED = ["number", "status", "reused", "latency_s", "cost_usd", "started_at", "finished_at"]
_TILES = 48
_THUMBNAIL = 200

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
    ]
)


@dataclass(frozen=True, slots=True)
class Pace:
    """What log.jsonl says about a run's pace, second by second, and how long it worked."""

    seconds: pd.DataFrame
    errors: Counter[str]


@verb("measure")
def measure(settings: RunSettings, counts: PlanCounts, changes: Changes, wall_s: float) -> RunSummary:
    """Write metrics, report and the run's row into the bucket; the summary."""
    with open_session(settings) as session:
        folder, bucket = session.folder.path, session.bucket
        jobs = pq.read_table(folder / "jobs.parquet", columns=_MEASURED).to_pandas(
            strings_to_categorical=True
        )
        pace = read_pace(session)
        metrics = metrics_table(jobs, pace, duplicates_saved(session))
        pq.write_table(metrics, folder / "metrics.parquet", compression="zstd")
        run = f"runs/{settings.run_id}"
        metrics_uri = bucket.upload(folder / "metrics.parquet", f"{run}/metrics.parquet", PARQUET)
        summary = summarize(session, counts, jobs, pace, wall_s).model_copy(
            update={
                **asdict(changes),
                "manifest": bucket.uri_of("manifest.parquet"),
                "metrics": metrics_uri,
                "report": bucket.uri_of(f"{run}/report.html"),
            }
        )
        report = folder / "report.html"
        report.write_text(render_report(_report(session, summary, jobs, metrics)), encoding="utf-8")
        bucket.upload(report, f"{run}/report.html", "text/html; charset=utf-8")
        pq.write_table(_run_table(settings, summary, jobs), folder / "run.parquet")
        bucket.upload(folder / "run.parquet", f"metrics/run_id={settings.run_id}/run.parquet", PARQUET)
        session.folder.write_summary(summary)
        bucket.upload(session.folder.summary, f"{run}/summary.json", "application/json")
        return summary


def count(session: Session, counts: PlanCounts, wall_s: float) -> RunSummary:
    """The summary of a run that was interrupted: counted, nothing published."""
    no_jobs = pd.DataFrame({name: [] for name in ("status", "reused", "latency_s")})
    summary = summarize(session, counts, no_jobs, read_pace(session), wall_s)
    try:
        session.folder.write_summary(summary)
    except OSError:  # a full disk may be why the run stops
        session.folder.forget_summary()
    return summary


def summarize(
    session: Session, counts: PlanCounts, jobs: pd.DataFrame, pace: Pace, wall_s: float
) -> RunSummary:
    """A run's summary, from its store, its jobs and its pace."""
    totals: JobTotals = session.wait(session.store.totals)
    finished = totals.done + totals.failed
    latencies = jobs.loc[(jobs["status"] == "done") & jobs["latency_s"].notna(), "latency_s"]
    working_s = _working_s(jobs, pace)
    price = (counts.cost_usd / counts.unique) if counts.unique else 0.0
    return RunSummary(
        run_id=session.settings.run_id,
        rows=counts.rows,
        rejected=counts.rejected,
        unique=counts.unique,
        duplicates=counts.duplicates,
        done=totals.done,
        failed=totals.failed,
        pending=totals.pending,
        generated=totals.generated,
        reused=totals.reused,
        images_per_minute=round(60 * totals.generated / working_s, 2) if working_s else 0.0,
        error_rate=round(totals.failed / finished, 6) if finished else 0.0,
        p50_latency_s=_quantile(latencies, 0.5),
        p95_latency_s=_quantile(latencies, 0.95),
        cost_usd=round(totals.cost_usd, 12),
        unanswered=totals.unanswered,
        unanswered_usd=round(totals.unanswered_usd, 12),
        saved_usd=round(counts.duplicates_usd + totals.reused * price, 12),
        requests=totals.attempts,
        rate_limited=pace.errors["rate_limited"],
        retries=totals.retries,
        errors=dict(pace.errors),
        wall_s=round(wall_s, 2),
        manifest=None,
        metrics=None,
        report=None,
        stopped=session.engine.stopped.reason if session.engine.stopped else None,
    )


def read_pace(session: Session) -> Pace:
    """The seconds of a run, from its log."""
    session.portal.call(session.recorder.write_pace)
    rows: list[dict[str, Any]] = []
    errors: Counter[str] = Counter()
    with session.folder.log.open("rb") as log:
        for line in log:
            if b'"event":"pace"' not in line and b'"event":"attempt_failed"' not in line:
                continue
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # a line that a kill cut short
            if event["event"] == "pace":
                rows.append({"worker": "", **event})
            elif event["event"] == "attempt_failed":
                errors[event["error_class"]] += 1
    columns = ["at", "worker", "requests", "rate_limited", "retries", "concurrency", "in_flight"]
    seconds = pd.DataFrame(rows, columns=columns)
    seconds["at"] = pd.to_datetime(seconds["at"], utc=True)
    return Pace(seconds, errors)


def duplicates_saved(session: Session) -> pd.DataFrame:
    """For each job, by its number: how many duplicate rows it serves, and what they would have cost."""
    plan = pq.read_table(session.folder.plan, columns=["job", "width", "height"])
    plan = plan.filter(plan["job"].is_valid())
    numbers, first_rows, rows = np.unique(plan["job"].to_numpy(), return_index=True, return_counts=True)
    sizes = plan.select(["width", "height"]).take(first_rows).to_pandas()
    known = sizes.drop_duplicates()
    prices = [session.api.price_usd(int(w), int(h)) for w, h in known.to_numpy()]
    price = sizes.merge(known.assign(price=prices), on=["width", "height"], how="left")["price"].to_numpy()
    duplicates = rows - 1
    saved = {"duplicates": duplicates, "saved_usd": duplicates * price}
    return pd.DataFrame(saved, index=pd.Index(numbers, name="job"))


def metrics_table(jobs: pd.DataFrame, pace: Pace, saved: pd.DataFrame) -> pa.Table:
    """The metrics per time bucket; buckets in which nothing happened are left out."""
    finished = jobs[jobs["finished_at"].notna() & ~jobs["reused"].astype(bool)].merge(
        saved, left_on="number", right_index=True, how="left"
    )
    times = pd.concat([finished["finished_at"], pace.seconds["at"]]).dropna()
    if times.empty:
        return METRICS_SCHEMA.empty_table()
    span = (times.max() - times.min()).total_seconds()
    width = next((w for w in BUCKET_WIDTHS_S if span / w < MOST_BUCKETS), BUCKET_WIDTHS_S[-1])
    finished = finished.assign(bucket=finished["finished_at"].dt.floor(f"{width}s"))
    seconds = pace.seconds.assign(bucket=pace.seconds["at"].dt.floor(f"{width}s"))
    done = finished[finished["status"] == "done"]
    by_done, by_second = done.groupby("bucket"), seconds.groupby("bucket")
    table = pd.DataFrame(
        {
            "images": by_done.size(),
            "failed": finished[finished["status"] == "failed"].groupby("bucket").size(),
            "p50_latency_s": by_done["latency_s"].quantile(0.5),
            "p95_latency_s": by_done["latency_s"].quantile(0.95),
            "cost_usd": finished.groupby("bucket")["cost_usd"].sum(),
            "requests": by_second["requests"].sum(),
            "rate_limited": by_second["rate_limited"].sum(),
            "retries": by_second["retries"].sum(),
            # Where several processes worked, the account saw the sum.
            "concurrency": seconds.groupby(["bucket", "worker"])["concurrency"].max().groupby("bucket").sum(),
            "duplicates_saved": by_done["duplicates"].sum(),
            "saved_usd": by_done["saved_usd"].sum(),
        }
    ).sort_index()
    counted = [name for name in table.columns if name not in _MAY_BE_UNKNOWN]
    table[counted] = table[counted].astype("float64").fillna(0)
    table["bucket_start"] = table.index
    table["bucket_s"] = width
    table["images_per_minute"] = table["images"] * (60.0 / width)
    finished_jobs = table["images"] + table["failed"]
    table["error_rate"] = (table["failed"] / finished_jobs.where(finished_jobs > 0, 1)).astype(float)
    table["cost_usd_total"] = table["cost_usd"].cumsum()
    return pa.Table.from_pandas(table, METRICS_SCHEMA, preserve_index=False, safe=False)


_MAY_BE_UNKNOWN = {"p50_latency_s", "p95_latency_s", "concurrency"}


def _quantile(values: pd.Series[float], share: float) -> float | None:
    return round(float(values.quantile(share)), 4) if len(values) else None


def _working_s(jobs: pd.DataFrame, pace: Pace) -> float:
    """Seconds in which images were asked for: from the first to the last event, without pauses."""
    times = [pace.seconds["at"]]
    if "started_at" in jobs:
        asked = jobs[~jobs["reused"].astype(bool)]
        times += [asked["started_at"], asked["finished_at"]]
    moments = pd.concat(times).dropna().sort_values()
    if len(moments) < 2:
        return 0.0
    gaps = moments.diff().dropna().dt.total_seconds()
    return max(float(gaps[gaps <= PAUSE_S].sum()), 0.001)


def _run_table(settings: RunSettings, summary: RunSummary, jobs: pd.DataFrame) -> pa.Table:
    """A run as one row of the table that the folder metrics/ is."""
    row = summary.model_dump(exclude={"errors", "run_id"})
    started = jobs["started_at"].min() if len(jobs) else None
    row |= {
        "started_at": None if started is None or pd.isna(started) else started.to_pydatetime(),
        "ended_at": datetime.now(UTC),
        "catalog": settings.catalog.path,
        "provider": settings.api.provider,
        "output": settings.output.uri,
        **{f"errors_{name}": summary.errors.get(name, 0) for name in ErrorClass},
    }
    fields = [(name, _RUN_TYPES.get(name) or _arrow_type(value)) for name, value in row.items()]
    return pa.Table.from_pylist([row], pa.schema(fields))


_RUN_TYPES = {
    "started_at": pa.timestamp("ms", "UTC"),
    "ended_at": pa.timestamp("ms", "UTC"),
    "p50_latency_s": pa.float64(),
    "p95_latency_s": pa.float64(),
}


def _arrow_type(value: object) -> pa.DataType:
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _report(session: Session, summary: RunSummary, jobs: pd.DataFrame, metrics: pa.Table) -> Report:
    settings = session.settings
    shown = [f.name for f in METRICS_SCHEMA if f.name not in {"duplicates_saved", "saved_usd"}]
    rows = metrics.select(shown).to_pylist()
    started, ended = jobs["started_at"].min(), jobs["finished_at"].max()
    return Report(
        summary=summary,
        catalog=settings.catalog.path,
        provider=settings.api.provider,
        model=session.api.model,
        output=settings.output.uri,
        started=None if pd.isna(started) else started.to_pydatetime(),
        ended=None if pd.isna(ended) else ended.to_pydatetime(),
        buckets=[MetricsBucket(**{k: _number(v) for k, v in row.items()}) for row in rows],
        failures=_failures(session),
        tiles=_tiles(session, jobs),
    )


def _number(value: Any) -> Any:  # noqa: ANN401 - a cell of any type
    return None if isinstance(value, float) and math.isnan(value) else value


def _failures(session: Session) -> list[FailureGroup]:
    failed = pq.read_table(session.folder.path / "failed.parquet").to_pandas()
    groups = []
    for (error_class, code), jobs in failed.groupby(["error_class", "error_code"]):
        example = jobs.iloc[0]
        groups.append(
            FailureGroup(
                error_class=error_class,
                error_code=code,
                count=len(jobs),
                retryable=bool(example["retryable"]),
                example_id=example["id"],
                example_prompt=example["prompt"],
                example_message=example["error_message"] or "",
            )
        )
    return sorted(groups, key=lambda group: -group.count)


def _tiles(session: Session, jobs: pd.DataFrame) -> Sequence[Tile]:
    """Thumbnails of images spread evenly over the run."""
    done = jobs[jobs["status"] == "done"]
    chosen = done.iloc[:: max(1, math.ceil(len(done) / _TILES))]
    plan = pq.read_table(
        session.folder.plan,
        columns=["job", "prompt", "seed", "width", "height"],
        filters=[("job", "in", chosen["number"].tolist())],
    ).to_pandas()
    inputs = plan.drop_duplicates("job").set_index("job")
    made = pq.read_table(
        session.folder.path / "jobs.parquet",
        columns=["number", "id", "image"],
        filters=[("number", "in", chosen["number"].tolist())],
    ).to_pandas()

    def tile(job: Any) -> Tile | None:  # noqa: ANN401 - a row of a data frame
        row = inputs.loc[job.number]
        try:
            content = session.bucket.read(job.image)
            with Image.open(io.BytesIO(content or b""), formats=["PNG", "JPEG", "WEBP"]) as image:
                image.draft("RGB", (_THUMBNAIL * 2, _THUMBNAIL * 2))
                small = image.convert("RGB")
        except (OSError, ValueError, StoreUnavailableError):
            return None  # a report without one picture is better than none
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=80, optimize=True)
        return Tile(
            id=job.id,
            prompt=row["prompt"],
            seed=int(row["seed"]),
            width=int(row["width"]),
            height=int(row["height"]),
            uri=session.bucket.uri_of(job.image),
            thumbnail=encoded.getvalue(),
        )

    with ThreadPoolExecutor(4) as threads:
        tiles = threads.map(tile, made.itertuples())
        return [found for found in tiles if found is not None]
