"""Two runs side by side: the metrics of each, and the pictures that each has of the same rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.errors import InputError
from imagemill.formatting import money, percent, rate, seconds
from imagemill.media_types import HTML
from imagemill.parquet import read_batches
from imagemill.reports.contact_sheet import Tile, tiles_of
from imagemill.reports.templating import environment
from imagemill.runs.folder import RunFolder
from imagemill.runs.summary import RunSummary
from imagemill.settings import RunSettings

_SIDE = 320
_SHOWN = ("row", "id", "prompt", "seed", "width", "height", "steps", "params", "job", "variant", "varied")
_NO_PICTURE = "no picture"


class Comparison(BaseModel):
    """What a comparison of two runs shows; rows count each variant."""

    model_config = ConfigDict(frozen=True)

    run_a: RunSummary
    run_b: RunSummary
    in_both: int = Field(description="Rows of both catalogs, by id and variant.")
    only_a: int = Field(description="Rows of the first run only.")
    only_b: int = Field(description="Rows of the second run only.")
    same: int = Field(description="Rows of both that have the very same picture.")
    shown: int = Field(description="Pairs of pictures on the page.")
    page: str = Field(description="Where the page is.")
    file: str = Field(description="The same on this machine.")


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run to compare: its settings, its folder on this machine, and the bucket of its output."""

    settings: RunSettings
    folder: RunFolder
    bucket: ImageBucket


@dataclass(frozen=True, slots=True)
class Pair:
    """The pictures that two runs have of one row and variant."""

    a: Tile
    b: Tile


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of both runs, in words; ``kind`` says whether the second is better, worse or neither."""

    name: str
    a: str
    b: str
    change: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of two plans, joined: ``row_a``, ``job_a``, ``image_a``, the same for b, and ``same``."""

    both: pa.Table
    only_a: int
    only_b: int


def publish_comparison(a: ComparedRun, b: ComparedRun, pictures: int) -> Comparison:
    """Write the page into the first run's folder and bucket; at most ``pictures`` pairs, of rows that differ.

    Raises:
        InputError: a run has published nothing yet, or the disk does not take the page.
        StoreUnavailableError: the bucket is unavailable.
    """
    summaries = _summary(a), _summary(b)
    with tempfile.TemporaryDirectory(prefix="imagemill-") as temporary:
        jobs = [_jobs_file(run, Path(temporary) / f"{place}.parquet") for place, run in enumerate((a, b))]
        rows = _joined(_planned(a, jobs[0]), _planned(b, jobs[1]))
        chosen = _chosen(rows.both, pictures)
        sides = [_tiles(run, chosen, side, file) for run, side, file in zip((a, b), "ab", jobs, strict=True)]
    pairs = [Pair(*tiles) for tiles in zip(*sides, strict=True)]
    name = f"compare-{b.folder.run_id}.html"
    found = Comparison(
        run_a=summaries[0],
        run_b=summaries[1],
        in_both=rows.both.num_rows,
        only_a=rows.only_a,
        only_b=rows.only_b,
        same=pc.sum(rows.both["same"]).as_py() or 0,
        shown=len(pairs),
        page=a.bucket.uri_of(f"runs/{a.folder.run_id}/{name}"),
        file=str(a.folder.path / name),
    )
    with a.folder.writable():
        Path(found.file).write_text(render_comparison(found, a.settings, b.settings, pairs), encoding="utf-8")
    a.bucket.upload(Path(found.file), f"runs/{a.folder.run_id}/{name}", HTML)
    return found


def render_comparison(found: Comparison, a: RunSettings, b: RunSettings, pairs: Sequence[Pair]) -> str:
    """The page as one HTML document."""
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            found=found,
            runs=[("A", found.run_a, a), ("B", found.run_b, b)],
            metrics=metric_rows(found.run_a, found.run_b),
            rows=[list(pairs) for _, pairs in groupby(pairs, lambda pair: pair.a.row)],
        )
    )


def metric_rows(a: RunSummary, b: RunSummary) -> list[MetricRow]:
    """The four metrics of both runs, then what else tells them apart."""
    counted: Callable[[float], str] = "{:,.0f}".format
    each_usd = _share(a.cost_usd, a.generated), _share(b.cost_usd, b.generated)
    suspect = _share(a.suspect, a.done), _share(b.suspect, b.done)
    return [
        _metric("Images per minute", a.images_per_minute, b.images_per_minute, rate, more_is=True),
        _metric("Error rate", a.error_rate, b.error_rate, percent, more_is=False),
        _metric("p95 latency", a.p95_latency_s, b.p95_latency_s, seconds, more_is=False),
        _metric("Total cost", a.cost_usd, b.cost_usd, money, more_is=False),
        _metric("Cost per image", *each_usd, money, more_is=False),
        _metric("Images done", a.done, b.done, counted),
        _metric("Suspect", *suspect, percent, more_is=False),
    ]


def _share(amount: float, images: int) -> float | None:
    return amount / images if images else None


def _metric(
    name: str,
    a: float | None,
    b: float | None,
    words: Callable[[float], str],
    *,
    more_is: bool | None = None,
) -> MetricRow:
    """A metric; ``more_is`` better (True), worse (False) or neither."""
    text_a, text_b = ("\u2013" if value is None else words(value) for value in (a, b))
    if a is None or b is None or not a:
        return MetricRow(name, text_a, text_b)
    change = round(100 * (b - a) / a)
    kind = "" if more_is is None or not change else "better" if (b > a) == more_is else "worse"
    return MetricRow(name, text_a, text_b, f"{change:+,}%" if change else "same", kind)


def _summary(run: ComparedRun) -> RunSummary:
    name = f"runs/{run.folder.run_id}/{run.folder.summary.name}"
    content = run.folder.summary.read_bytes() if run.folder.summary.exists() else run.bucket.read(name)
    try:
        return RunSummary.model_validate_json(content or b"")
    except ValidationError as error:
        raise InputError(
            f"Run {run.folder.run_id!r} has no summary yet, which is written when it ends or stops. Resume it"
            f" first: imagemill resume {run.folder.run_id}"
        ) from error


def _jobs_file(run: ComparedRun, file: Path) -> Path:
    """The run's jobs as they were published last, on whichever machine; its plan comes with them."""
    if run.bucket.download(f"runs/{run.folder.run_id}/jobs.parquet", file) is None:
        raise InputError(f"Run {run.folder.run_id!r} has no jobs.parquet in its bucket yet: resume it first.")
    if not run.folder.plan.exists():
        run.folder.create()
        with run.folder.writable():
            run.bucket.download(f"runs/{run.folder.run_id}/{run.folder.plan.name}", run.folder.plan)
    return file


def _planned(run: ComparedRun, jobs_file: Path) -> pa.Table:
    """The rows of a run that became jobs: ``key`` (id and variant), ``row``, ``job`` and the image's URI."""
    jobs = pq.read_table(jobs_file, columns=["number", "image"]).sort_by("number")
    there = pq.read_schema(run.folder.plan).names
    columns = [name for name in ("id", "row", "job", "variant") if name in there]
    plan = pq.read_table(run.folder.plan, columns=columns)
    plan = plan.filter(pc.is_valid(plan["job"]))
    variants = plan["variant"] if "variant" in columns else pa.array([1] * plan.num_rows, pa.int32())
    places = pc.index_in(plan["job"], jobs["number"].combine_chunks())
    images = pc.take(jobs["image"], places)
    return pa.table(
        {
            "key": pc.binary_join_element_wise(pc.cast(variants, pa.string()), plan["id"], " "),
            "row": plan["row"],
            "variant": variants,
            "job": plan["job"],
            "image": pc.binary_join_element_wise(run.bucket.uri, images, "/"),
        }
    )


def _joined(a: pa.Table, b: pa.Table) -> _Rows:
    both = a.join(
        b, "key", join_type="inner", left_suffix="_a", right_suffix="_b", use_threads=False
    ).sort_by([("row_a", "ascending"), ("variant_a", "ascending")])
    same = pc.fill_null(pc.equal(both["image_a"], both["image_b"]), fill_value=False)
    only = [one.num_rows - both.num_rows for one in (a, b)]
    return _Rows(both.append_column("same", same), *only)


def _chosen(both: pa.Table, pictures: int) -> pa.Table:
    """Rows spread evenly, with all variants of each; of those whose pictures differ, if there are any."""
    differing = both.filter(pc.invert(both["same"]))
    of = differing if differing.num_rows else both
    rows = pc.unique(of["row_a"])
    per_row = max(1, both.num_rows // max(1, len(pc.unique(both["row_a"]))))
    wanted = rows[:: max(1, math.ceil(len(rows) * per_row / pictures))]
    return both.filter(pc.is_in(both["row_a"], wanted)).slice(0, pictures)


def _tiles(run: ComparedRun, chosen: pa.Table, side: str, jobs_file: Path) -> list[Tile]:
    """The run's pictures of the chosen rows, in their order."""
    rows: dict[str, dict[str, Any]] = {}
    wanted = chosen[f"row_{side}"].combine_chunks()
    names = [name for name in _SHOWN if name in pq.read_schema(run.folder.plan).names]
    for batch in read_batches(run.folder.plan, names):
        for row in batch.filter(pc.is_in(batch["row"], wanted)).to_pylist():
            rows[f"{row.get('variant', 1)} {row['id']}"] = row
    ordered = [rows[key] for key in chosen["key"].to_pylist()]
    there = pq.read_schema(jobs_file).names
    columns = [name for name in ("number", "image", "error_code", "suspect", "judge_words") if name in there]
    numbers = pa.array([row["job"] for row in ordered], pa.int64())
    images: dict[int, str | None] = {}
    faults: dict[int, str] = {}
    suspects: dict[int, tuple[str, str]] = {}
    for batch in read_batches(jobs_file, columns):
        for job in batch.filter(pc.is_in(batch["number"], numbers)).to_pylist():
            images[job["number"]] = job["image"]
            faults[job["number"]] = job["error_code"] or _NO_PICTURE
            suspects[job["number"]] = job.get("suspect") or "", job.get("judge_words") or ""
    return tiles_of(run.bucket, ordered, images, faults, suspects, side=_SIDE)
