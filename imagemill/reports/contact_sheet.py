"""The contact sheet: which pictures of a run are shown, and their thumbnails."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.errors import StoreUnavailableError
from imagemill.parquet import read_batches, read_rows
from imagemill.takes import seed_of, take_of

_THUMBNAIL = 200
_MOST_VARIANTS = 24
"""The most pictures of one row that are shown."""

_SHOWN = ("row", "id", "prompt", "seed", "width", "height", "steps", "params", "job", "variant", "varied")


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a contact sheet; ``thumbnail`` is a small JPEG.

    ``row`` is the catalog row, whose ``variant`` it is; ``varied`` words what its pictures differ in.
    ``fault`` says why there is no picture, ``suspect`` what looks wrong in it, ``words`` what the judge said.
    """

    id: str
    prompt: str
    seed: int
    width: int
    height: int
    uri: str
    thumbnail: bytes
    row: int = 0
    variant: int = 1
    varied: str = ""
    fault: str = ""
    suspect: tuple[str, ...] = ()
    words: str = ""


def spread_rows(
    plan: Path, pictures: int, variants: int, done: npt.NDArray[np.bool_] | None = None
) -> list[dict[str, Any]]:
    """Rows of a plan, spread evenly over the catalog, with all variants of each: some ``pictures`` of them.

    Each of several rows with one job is passed over but the first. With ``done``, by job number, only
    pictures that are done.
    """
    shown = min(variants, _MOST_VARIANTS, pictures)
    firsts = list(_first_rows(plan, done))
    rows = np.concatenate([np.empty(0, np.int64), *firsts])
    chosen = pa.array(rows[:: max(1, math.ceil(len(rows) * shown / pictures))])
    names = [name for name in _SHOWN if name in pq.read_schema(plan).names]
    found: list[dict[str, Any]] = []
    for batch in read_rows(plan, names, "row", chosen):
        found += batch.to_pylist()
    kept = [row for row in found if row["job"] is not None and (done is None or done[row["job"]])]
    return [row for row in kept if row.get("variant", 1) <= _MOST_VARIANTS][:pictures]


def rows_of(plan: Path, jobs: Collection[int]) -> list[dict[str, Any]]:
    """The first of a plan's rows of each of these jobs."""
    wanted = pa.array(sorted(jobs), pa.int64())
    names = [name for name in _SHOWN if name in pq.read_schema(plan).names]
    rows: dict[int, dict[str, Any]] = {}
    for batch in read_rows(plan, names, "job", wanted):
        for row in batch.to_pylist():
            rows.setdefault(row["job"], row)
    return list(rows.values())


def _first_rows(plan: Path, done: npt.NDArray[np.bool_] | None) -> Iterator[npt.NDArray[np.int64]]:
    """The catalog rows with a job that no earlier row has, in batches."""
    known = -1
    for batch in read_batches(plan, ["row", "job"]):
        jobs = batch["job"].fill_null(-1).to_numpy()
        before = np.maximum.accumulate(np.concatenate(([known], jobs[:-1])))
        wanted = jobs > before  # a job's first row has the highest number so far
        known = max(known, int(jobs.max(initial=-1)))
        if done is not None:
            wanted[wanted] = done[jobs[wanted]]
        yield np.unique(batch["row"].to_numpy()[wanted])


def tiles_of(
    bucket: ImageBucket,
    rows: Sequence[dict[str, Any]],
    images: dict[int, str | None],
    faults: dict[int, str] | None = None,
    suspects: dict[int, tuple[str, str]] | None = None,
    side: int = _THUMBNAIL,
) -> list[Tile]:
    """The tiles of a plan's rows. By job: objects, what went wrong, verdicts (with commas) and judge's words.

    No side of a thumbnail is longer than ``side`` pixels.

    A row without either is left out: a sheet without one picture is better than none.
    """

    def tile(row: dict[str, Any]) -> Tile | None:
        name, fault = images.get(row["job"]), (faults or {}).get(row["job"], "")
        thumbnail = _thumbnail(bucket, name, side) if name else b""
        if not thumbnail and not fault:
            return None
        varied = json.loads(row.get("varied") or "{}")
        suspect, words = (suspects or {}).get(row["job"], ("", ""))
        return Tile(
            id=row["id"],
            prompt=row["prompt"],
            seed=seed_of(row["seed"], take_of(name or "")),
            width=row["width"],
            height=row["height"],
            uri=bucket.uri_of(name) if name else "",
            thumbnail=thumbnail,
            row=row["row"],
            variant=row.get("variant", 1),
            varied=" · ".join(varied.values()),
            fault=fault,
            suspect=tuple(filter(None, suspect.split(","))),
            words=words if suspect else "",
        )

    with ThreadPoolExecutor(4) as threads:
        return [found for found in threads.map(tile, rows) if found is not None]


def _thumbnail(bucket: ImageBucket, name: str, side: int) -> bytes:
    """A small JPEG of an image in the bucket; empty if it cannot be read."""
    try:
        content = bucket.read(name)
        with Image.open(io.BytesIO(content or b""), formats=["PNG", "JPEG", "WEBP"]) as image:
            image.draft("RGB", (side * 2, side * 2))
            small = image.convert("RGB")
    except (OSError, ValueError, StoreUnavailableError):
        return b""
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80, optimize=True)
    return encoded.getvalue()
