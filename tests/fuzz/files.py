"""Fuzz targets that read files: pictures, Parquet catalogs, logs, checkpoints, records of a run.

A target takes a random generator, gives something spoilt to the code that reads it, and says in a word what
came of it. Whatever it raises is a finding.
"""

from __future__ import annotations

import functools
import io
import random
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagemill.blocks.apis import Together
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, write_plan
from imagemill.engine.image_check import check_picture
from imagemill.engine.receipt import Receipt
from imagemill.errors import ApiError, InputError
from imagemill.jobs import CostSource, Job, JobStatus
from imagemill.runs.log_replay import catch_up, last_lines, was_unanswered
from imagemill.settings import CatalogSettings, PictureSettings
from imagemill.stores import MemoryStore
from imagemill.stores.version import StoreVersion
from tests.fuzz.spoiling import spoilt_bytes, spoilt_json
from tests.virtual_time import run

SIDE = 64


@functools.cache
def _pictures() -> tuple[bytes, ...]:
    noise = Image.effect_noise((SIDE, SIDE), 80).convert("RGB")
    plain = Image.new("RGB", (SIDE, SIDE), (30, 90, 160))
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (noise, "PNG", {}),
        (plain, "PNG", {}),
        (plain.convert("P"), "PNG", {"bits": 2}),
        (plain.convert("RGBA"), "PNG", {}),
        (noise, "JPEG", {"progressive": True}),
        (plain, "JPEG", {"exif": b"Exif\0\0" + b"MM\0*\0\0\0\x08" + bytes(30)}),
        (noise, "WEBP", {}),
        (plain, "WEBP", {"lossless": True}),
        (plain.convert("RGBA"), "WEBP", {"exif": b"Exif\0\0II*\0"}),
        (plain, "WEBP", {"save_all": True, "append_images": [noise], "duration": 10}),
    ]
    made = []
    for image, form, options in forms:
        content = io.BytesIO()
        image.save(content, form, **options)
        made.append(content.getvalue())
    return tuple(made)


def picture(rnd: random.Random) -> str:
    """The picture check."""
    content = spoilt_bytes(rnd, rnd.choice(_pictures()))
    try:
        return check_picture(content, SIDE, SIDE, exact=rnd.random() < 0.7).extension
    except ApiError as error:
        return error.code


@functools.cache
def _catalogs() -> tuple[bytes, ...]:
    rows = 40
    table = pa.table(
        {
            "id": [str(n) for n in range(rows)],
            "prompt": [f"A fox, number {n}" for n in range(rows)],
            "width": [64 * (n % 8) for n in range(rows)],
            "seed": pa.array([None, 2**40, -1, 7] * 10, pa.int64()),
            "shelf": pa.array(["a", "b"] * 20).dictionary_encode(),
            "tags": [[str(n)] for n in range(rows)],
            "made": pa.array(range(rows), pa.timestamp("ms", "UTC")),
        }
    )
    options: list[dict[str, Any]] = [
        {"compression": "none"},
        {"compression": "zstd", "row_group_size": 7},
        {"compression": "gzip", "use_dictionary": False, "version": "1.0"},
        {"compression": "snappy", "data_page_size": 64, "data_page_version": "2.0"},
    ]
    made = []
    for option in options:
        content = io.BytesIO()
        pq.write_table(table, content, **option)
        made.append(content.getvalue())
    return tuple(made)


def parquet(rnd: random.Random) -> str:
    """The Parquet reader, and the plan that is made of what it reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.parquet"
        path.write_bytes(spoilt_bytes(rnd, rnd.choice(_catalogs())))
        planner = Planner(Together(api_key="k"), PictureSettings())  # type: ignore[arg-type]
        jobs: list[Any] = []
        try:
            catalog = open_catalog(CatalogSettings(path=str(path)))
            counts = write_plan(planner, catalog, path.with_suffix(".a"), path.with_suffix(".b"), jobs.append)
        except InputError as error:
            return f"refused: {type(error.__cause__).__name__}"
        assert counts.unique == sum(map(len, jobs))
        return "planned"


def _job(number: int = 0) -> Job:
    return Job(number, str(number), f"{number:040x}", "p", None, SIDE, SIDE, 1, 4, "m", "png")


def _line(event: str, **more: Any) -> dict[str, Any]:
    return {
        "at": "2026-11-26T00:00:00.000+00:00", "event": event, "run_id": "r", "job": 0, "id": "0", "key": "k",
        "status": "running", "attempt": 1, "request_id": "r1", **more,
    }  # fmt: skip


_PAID = {"cost_usd": 0.003, "cost_source": "list", "unanswered": 1, "unanswered_usd": 0.003}
_LINES = (
    _line("sent", request_id=None),
    _line("accepted", **_PAID),
    _line("attempt_failed", error_class="timeout", error_code="x", message="m", retry_in_s=1.0, **_PAID),
    _line("failed", **_PAID, input={"prompt": "p"}),
    _line("done", latency_s=1.0, image="images/a.png"),
    {"at": "x", "event": "pace", "run_id": "r", "requests": 1},
)


def log(rnd: random.Random) -> str:
    """The reader of the log of a killed process, and the job that is brought up to date."""
    lines = [spoilt_json(rnd, rnd.choice(_LINES)) for _ in range(rnd.randrange(1, 6))]
    content = b"\n".join(lines) + rnd.choice((b"", b"\n"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(spoilt_bytes(rnd, content) if rnd.random() < 0.3 else content)
        found = last_lines(path, range(3))
    for number, line in found.items():
        job = _job(number)
        job.start(1.0)
        catch_up(job, line)
        was_unanswered(job, line)
        assert isinstance(job.attempts, int)
        assert isinstance(job.request_id, str | None)
        assert 0 <= job.cost_usd < 1e6
        assert 0 <= job.unanswered_usd < 1e6
        assert isinstance(job.unanswered, int)
        job.pay(0.003, CostSource.LIST)
        orjson.dumps(job)
    return "found" if found else "nothing"


@functools.cache
def _checkpoint() -> dict[str, Any]:
    jobs = [_job(number) for number in range(4)]
    for job in jobs[1:]:
        job.start(1.0)
    jobs[2].finish(2.0, image="images/a.png", image_bytes=10, latency_s=1.0)
    jobs[3].fail(2.0, error_class="timeout", code="x", message="m", retryable=True)
    here = StoreVersion.here()
    document = {"version": here.number, "made_by": here.made_by, "jobs": jobs}
    found: dict[str, Any] = orjson.loads(orjson.dumps(document))
    return found


def checkpoint(rnd: random.Random) -> str:
    """The reader of the memory store's checkpoint: refused, or a store that works."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.json"
        path.write_bytes(spoilt_json(rnd, _checkpoint()))
        return run(_opened, path)


async def _opened(path: Path) -> str:
    store = MemoryStore(path)
    try:
        await store.__aenter__()
    except InputError:
        return "refused"
    try:
        await store.totals()
        await store.unfinished_numbers()
        jobs = [job async for batch in store.all_jobs() for job in batch]
        for job in await store.unfinished(0, 10):
            if job.status is JobStatus.PENDING:
                job.start(3.0)
            job.finish(3.0, image="i", image_bytes=1, latency_s=1.0)
            store.save(job)
        await store.commit()
    finally:
        await store.__aexit__(None, None, None)
    return f"{len(jobs)} jobs"


_RECEIPT = Receipt("r", 1, 0.5, 0.003, 0, 0.0, "list").to_metadata()


def receipt(rnd: random.Random) -> str:
    """The reader of an image's receipt, from an object's metadata or a file."""
    try:
        carried = orjson.loads(spoilt_json(rnd, _RECEIPT))
    except orjson.JSONDecodeError:
        return "no JSON"
    found = Receipt.from_metadata(carried)
    if found is not None:
        found.settle(_job())
    return "none" if found is None else "read"


FILES = {f.__name__: f for f in (picture, parquet, log, checkpoint, receipt)}
