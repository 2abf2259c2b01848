"""The review of a run: a page of its suspect pictures, on which a person chooses what becomes of each."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.errors import InputError
from imagemill.media_types import HTML
from imagemill.parquet import read_batches
from imagemill.quality.verdicts import Verdict, reason
from imagemill.reports.contact_sheet import Tile, rows_of, tiles_of
from imagemill.reports.templating import environment
from imagemill.runs.folder import RunFolder
from imagemill.takes import picture_of

MOST_SUSPECTS = 400
MOST_BYTES = 24_000_000
"""Of the thumbnails on one page, which has them as text, a third longer."""
_AT_ONCE = 40
_SIDE = 384
_ORDER = list(Verdict)
_MEASURES = ("blank_end", "flat", "sharpness", "border")
_GONE = "The bucket has no such picture any more, or it cannot be read."


class Review(BaseModel):
    """What a review shows."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    suspect: int = Field(description="The run's suspect pictures that nobody has decided on yet.")
    shown: int = Field(description="Those that the page shows: a page has at most so many.")
    page: str | None = Field(description="Where review.html is; null if no picture is suspect.")
    file: str | None = Field(description="The same on this machine.")


@dataclass(frozen=True, slots=True)
class Suspect:
    """A suspect picture: its name in choices, why it is suspect, and the picture that it looks like."""

    name: str
    picture: Tile
    reasons: Sequence[tuple[str, str]]
    neighbour: Tile | None = None


def publish_review(bucket: ImageBucket, folder: RunFolder) -> Review:
    """Write review.html of a run into its folder and its bucket; what it shows.

    Raises:
        InputError: the run has published nothing yet, or measured nothing.
        StoreUnavailableError: the bucket is unavailable.
    """
    run_id = folder.run_id
    rows = _suspects(_jobs_file(bucket, folder))
    shown = _shown(bucket, folder, rows) if rows else []
    if not shown:
        return Review(run_id=run_id, suspect=0, shown=0, page=None, file=None)
    file = folder.path / "review.html"
    file.write_text(render_review(run_id, shown, len(rows)), encoding="utf-8")
    page = bucket.upload(file, f"runs/{run_id}/{file.name}", HTML)
    return Review(run_id=run_id, suspect=len(rows), shown=len(shown), page=page, file=str(file))


def render_review(run_id: str, shown: Sequence[Suspect], suspect: int) -> str:
    """The page as one HTML document; ``suspect`` counts those that it does not show, too."""
    templates = environment()
    source = templates.loader.get_source(templates, "review.js")[0] if templates.loader else ""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return templates.get_template("review.html.j2").render(
        run_id=run_id,
        shown=shown,
        suspect=suspect,
        script=Markup(source),  # noqa: S704 - a file of the package, with nothing filled in
        digest=digest,
    )


def _jobs_file(bucket: ImageBucket, folder: RunFolder) -> Path:
    """The run's jobs as they were published last, on whichever machine."""
    file = folder.path / "review.jobs.parquet"
    if bucket.download(f"runs/{folder.run_id}/jobs.parquet", file) is None:
        raise InputError(
            f"Run {folder.run_id!r} has no jobs.parquet in its bucket yet: it publishes one when it ends or"
            " stops."
        )
    if not folder.plan.exists():
        bucket.download(f"runs/{folder.run_id}/plan.parquet", folder.plan)
    if "suspect" not in pq.read_schema(file).names:
        raise InputError(f"Run {folder.run_id!r} is of an earlier version, which measured no pictures.")
    return file


def _suspects(file: Path) -> list[dict[str, Any]]:
    """The jobs with a suspect picture, the worst first, each with the object of its neighbour."""
    wanted = (
        *("number", "status", "image", "suspect", *_MEASURES),
        *("near_duplicate_of", "judge_score", "judge_words"),
    )
    names = [name for name in wanted if name in pq.read_schema(file).names]
    found: list[dict[str, Any]] = []
    for batch in read_batches(file, names):
        is_done = pc.and_(pc.equal(batch["status"], "done"), pc.not_equal(batch["suspect"], ""))
        found += batch.filter(is_done).to_pylist()
    return sorted(found, key=_worst_first)


def _worst_first(job: dict[str, Any]) -> tuple[int, int]:
    known = [_ORDER.index(Verdict(word)) for word in job["suspect"].split(",") if word in _ORDER]
    return min(known, default=len(_ORDER)), job["number"]


def _shown(bucket: ImageBucket, folder: RunFolder, jobs: list[dict[str, Any]]) -> list[Suspect]:
    """The first of these jobs, with pictures and prompts, within what a page may have."""
    shown: list[Suspect] = []
    size = 0
    for start in range(0, min(len(jobs), MOST_SUSPECTS), _AT_ONCE):
        for suspect in _with_pictures(bucket, folder, jobs[start : start + _AT_ONCE]):
            size += len(suspect.picture.thumbnail)
            size += len(suspect.neighbour.thumbnail) if suspect.neighbour else 0
            if size > MOST_BYTES:
                return shown
            shown.append(suspect)
    return shown


def _with_pictures(bucket: ImageBucket, folder: RunFolder, jobs: list[dict[str, Any]]) -> Iterator[Suspect]:
    images: dict[int, str | None] = {job["number"]: job["image"] for job in jobs}
    near = {job["near_duplicate_of"] for job in jobs if job.get("near_duplicate_of") is not None}
    if missing := near.difference(images):
        images |= _images_of(folder.path / "review.jobs.parquet", missing)
    faults = dict.fromkeys(images, _GONE)
    tiles: dict[int, Tile] = {}
    rows = rows_of(folder.plan, images)
    for row, tile in zip(rows, tiles_of(bucket, rows, images, faults, side=_SIDE), strict=True):
        tiles[row["job"]] = tile
    for job in jobs:
        if job["number"] in tiles and job["image"]:
            words = [word for word in job["suspect"].split(",") if word]
            yield Suspect(
                picture_of(job["image"]),
                tiles[job["number"]],
                [(word, _reason(word, job)) for word in words],
                tiles.get(job.get("near_duplicate_of", -1)),
            )


def _reason(word: str, job: dict[str, Any]) -> str:
    if word == Verdict.JUDGED and job.get("judge_score") is not None:
        return f"score {job['judge_score']:.2f}. {job['judge_words'] or ''}"
    return reason(word, job)


def _images_of(file: Path, numbers: set[int]) -> dict[int, str | None]:
    wanted = pa.array(sorted(numbers), pa.int64())
    images: dict[int, str | None] = {}
    for batch in read_batches(file, ["number", "image"]):
        found = batch.filter(pc.is_in(batch["number"], wanted))
        images.update(zip(found["number"].to_pylist(), found["image"].to_pylist(), strict=True))
    return images
