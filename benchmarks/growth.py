"""What a run costs as its catalog grows; writes the tables into growth.md.

    python -m benchmarks.growth [ROWS ...]

With ROWS, such as 10000000, one round of these is printed and nothing recorded. Each catalog is planned for
an S3 server and a SQLite store, in a process of its own. Then all but one job in a thousand are marked
done, in the store and in the log, and the command resumes the run against an emulated API; at last the
whole run is published and measured once more, in a process of its own. Deduplication is compared with
pandas and DuckDB, which read the same file, in processes of their own.
"""

# ruff: noqa: PLC0415 - a process measures what it imports itself

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.emulator_process import EmulatorProcess, emulator_process
from benchmarks.recording import ROUNDS, Figures, Run, Spread, options, record
from benchmarks.workshop import BUCKET, Round, Workshop, machine, workshop
from imagemill.emulator import Settings

FILE = Path(__file__).with_suffix(".md")
ROWS = (1_000, 100_000, 1_000_000)
SIZE = {"width": "256", "height": "256"}
_ROUNDS_OF_LARGEST = 3
LEFT = 1000
"""One job in so many is left to do when the run is resumed."""

_LEAN = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
"""What the command sets for itself: see :mod:`imagemill.cli.memory`."""

_DUPLICATES = 0.12
_THINGS = ("ceramic mug", "linen shirt", "oak chair", "brass lamp", "wool blanket", "glass vase")
_PLACES = ("on a wooden table", "by a window", "in a bright studio", "on marble", "in a garden at dusk")
_STYLES = ("product photo, soft light, 85 mm", "catalog shot, white background", "editorial, film grain")
_SCHEMA = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("shelf", pa.string())])


def write_catalog(path: Path, rows: int) -> None:
    """A catalog such as a shop has: 12 % of its rows ask for a picture that an earlier one asked for."""
    rng = random.Random(7)
    prompts: list[str] = []
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for first in range(0, rows, 50_000):
            numbers = range(first, min(rows, first + 50_000))
            chosen = []
            for number in numbers:
                if prompts and rng.random() < _DUPLICATES:
                    chosen.append(rng.choice(prompts))
                    continue
                thing, place, style = rng.choice(_THINGS), rng.choice(_PLACES), rng.choice(_STYLES)
                prompts.append(f"{thing} no. {number}, {place}, {style}")
                chosen.append(prompts[-1])
            shelves = [("spring", "summer", "autumn")[number % 3] for number in numbers]
            names = [f"sku-{number:07}" for number in numbers]
            writer.write_table(pa.table([names, chosen, shelves], schema=_SCHEMA))


def settings_of(catalog: str, name: str, base_url: str, endpoint_url: str) -> Any:  # noqa: ANN401
    """The settings of the run that ``Round.start`` resumes."""
    from imagemill.settings import ExecutionSettings, PictureSettings, RunSettings

    return RunSettings(
        run_id=name,
        catalog=catalog,
        api={"provider": "together", "base_url": base_url},
        output={"uri": f"s3://{BUCKET}/{name}", "s3_endpoint_url": endpoint_url},
        picture=PictureSettings(width=256, height=256),
        execution=ExecutionSettings(store="sqlite"),
    )


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, and the seconds and CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = action()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def plan(*place: str) -> dict[str, float]:
    """Plan a run: read, check, key, deduplicate, enqueue, upload the plan."""
    import imagemill.tasks.measure  # noqa: F401 - the flow has loaded it
    from imagemill.runs.planning import plan_run
    from imagemill.runs.session import open_session
    from imagemill.tasks.prepare import prepare

    settings = settings_of(*place)
    with open_session(settings) as session:
        before = peak_mb()
        (counts, _), wall, cpu = timed(lambda: plan_run(session))
        _, prepare_s, _ = timed(lambda: prepare.fn(session))  # what it does beside planning
    return {"unique": counts.unique, "wall": wall, "cpu": cpu, "prepare": prepare_s, "before": before}


def upload_log(*place: str) -> dict[str, float]:
    """Upload the log so far, as a run does every few seconds, though in larger parts."""
    from imagemill.bucket.access import open_bucket
    from imagemill.runs.folder import RunFolder
    from imagemill.runs.log_parts import LeaderLog

    settings = settings_of(*place)
    bucket = open_bucket(settings.output)
    LeaderLog(bucket, RunFolder(settings.run_id))
    bucket.close()
    return {}


def publish(*place: str) -> dict[str, float]:
    """Publish and measure a run that has been worked off."""
    from imagemill.runs.session import open_session
    from imagemill.tasks.measure import measure
    from imagemill.tasks.publish import publish as publish_run

    settings = settings_of(*place)
    with open_session(settings) as session:
        record = session.folder.read_record()
        assert record is not None
        counts = record[1]
        before = peak_mb()
        changes, publish_s, cpu = timed(lambda: publish_run.fn(session, counts))
        summary, measure_s, more = timed(lambda: measure.fn(session, counts, changes))
        assert summary.done == counts.unique
    return {"publish": publish_s, "measure": measure_s, "cpu": cpu + more, "before": before}


def by_pandas(catalog: str) -> int:
    """Unique prompts, by pandas."""
    import pandas as pd

    return len(pd.read_parquet(catalog, columns=["id", "prompt"]).drop_duplicates("prompt"))


def by_duckdb(catalog: str) -> int:
    """Unique prompts, by DuckDB, with the id of each."""
    import duckdb

    found = duckdb.sql(f"SELECT prompt, any_value(id) AS id FROM '{catalog}' GROUP BY prompt").arrow()
    return len(found.read_all() if hasattr(found, "read_all") else found)


def by_imagemill(catalog: str) -> int:
    """Unique jobs, by the planner: all of the plan but its files and its store."""
    from imagemill.blocks.apis import Together
    from imagemill.catalog.files import open_catalog
    from imagemill.catalog.plan import Planner
    from imagemill.settings import CatalogSettings, PictureSettings

    planner = Planner(Together(api_key="benchmark"), PictureSettings())
    for _ in planner.plan(open_catalog(CatalogSettings(path=catalog))):
        pass
    return planner.counts.unique


CONTENDERS = {"imagemill": by_imagemill, "pandas": by_pandas, "duckdb": by_duckdb}


def deduplicate(who: str, catalog: str) -> dict[str, float]:
    """Seconds and unique rows of one of the contenders; its imports are not counted."""
    import pandas as pd

    import imagemill.catalog.plan  # noqa: F401

    contender = CONTENDERS[who]
    pd.DataFrame({"a": ["b"]}).drop_duplicates()
    before = peak_mb()
    unique, wall, cpu = timed(lambda: contender(catalog))
    return {"unique": unique, "wall": wall, "cpu": cpu, "before": before}


def peak_mb(process: int | str = "self") -> float:
    """A process's peak memory so far, 0 once it has ended; the kernel's other figure has the parent's."""
    found = Path("/proc", str(process), "status").read_text().partition("VmHWM:")[2].split()
    return int(found[0]) / 1024 if found else 0.0


def child(*arguments: str, **environment: str) -> dict[str, float]:
    """Measure something in a process of its own, which keeps as little memory as the command's."""
    command = [sys.executable, "-m", "benchmarks.growth", "--one", *arguments]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **_LEAN, **environment}
    ).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def nearly_finish(run: Round) -> None:
    """Mark all but one job in a thousand as done; in the store, and in the log, as a run would have."""
    folder = run.home / "runs" / run.name
    database = sqlite3.connect(folder / "jobs.sqlite")
    database.execute(
        "UPDATE imagemill_jobs SET status = 'done', attempts = 1, cost_usd = 0.0027, image_bytes = 1400000,"
        " image = 'images/' || substr(key, 1, 2) || '/' || key || '.png', latency_s = 1 + number % 9 / 10.0,"
        " started_at = 1.79e9 + number / 50, finished_at = 1.79e9 + number / 50 + 1 WHERE number % ? != 0",
        (LEFT,),
    )
    database.commit()
    second, at = -1, ""
    with (folder / "log.jsonl").open("a") as log:
        for number, row_id, key in database.execute("SELECT number, id, key FROM imagemill_jobs"):
            if number % LEFT == 0:
                continue
            if number // 50 != second:
                second = number // 50
                at = time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime(1.79e9 + second))
            for event, status, more in (
                ("sent", "running", ""),
                ("done", "done", f',"latency_s":0.8,"image":"images/{key[:2]}/{key}.png"'),
            ):
                log.write(
                    f'{{"at":"{at}","event":"{event}","run_id":"{run.name}","job":{number},"id":"{row_id}",'
                    f'"key":"{key}","status":"{status}","attempt":1,"request_id":null{more}}}\n'
                )
    database.close()


def fill_bucket(run: Round) -> None:
    """More images than one answer to a listing holds; none of them of this run."""
    client = run.workshop.s3.client()
    names = [f"{run.name}/images/{n % 256:02x}/{n % 256:02x}{n:038x}.png" for n in range(1_100)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: client.put_object(Bucket=BUCKET, Key=name, Body=b"image"), names))
    client.close()


def resume(run: Round) -> dict[str, float]:
    """Resume the run by the command: seconds to its first request, and to its end; its peak memory."""
    log = run.home / "runs" / run.name / "log.jsonl"
    size = log.stat().st_size
    begun = time.time()
    process = run.start(store="sqlite")
    first = peak = 0.0
    while process.poll() is None:
        time.sleep(0.02)
        peak = max(peak, peak_mb(process.pid))
        if not first:
            with log.open("rb") as lines:
                lines.seek(size)
                if b'"event":"sent"' in lines.read():
                    first = time.time() - begun
    whole = time.time() - begun
    ended = run.finish(process)
    assert ended.code == 0, ended
    assert ended.summary["pending"] == 0, ended
    return {"first": first, "all": whole, "peak": peak}


def told(part: str, figures: dict[str, float]) -> dict[str, float]:
    """The same figures, and on stderr: a catalog of ten million rows takes the better part of an hour."""
    print(f"{part}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return figures


_NUMBERS = itertools.count()


def grow(shop: Workshop, emulated: EmulatorProcess, rows: int, catalog: Path, *, dedupe: bool) -> Figures:
    """All measurements of one catalog."""
    name = f"grow-{rows}-{next(_NUMBERS)}"
    run = Round(shop, name, shop.folder / name, str(catalog), emulated, "together", {}, SIZE)
    run.home.mkdir()
    place = (str(catalog), run.name, emulated.base_url, shop.s3.endpoint_url)
    environment = {
        **shop.s3.environment,
        "IMAGEMILL_HOME": str(run.home),
        "PREFECT_API_URL": shop.prefect_url,
        "TOGETHER_API_KEY": "benchmark",
    }
    found: Figures = {"plan": told("plan", child("plan", *place, **environment))}
    fill_bucket(run)
    nearly_finish(run)
    child("upload_log", *place, **environment)
    found["resume"] = told("resume", resume(run))
    found["publish"] = told("publish", child("publish", *place, **environment))
    shutil.rmtree(run.home)
    if dedupe:
        found["dedupe"] = {who: child("dedupe", who, str(catalog)) for who in CONTENDERS}
        assert len({one["unique"] for one in found["dedupe"].values()}) == 1
    return found


def tables(found: Mapping[str, list[Figures]]) -> str:
    """The tables: medians, and the least and the most of the rounds."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    rounds = min(map(len, found.values()))
    yield f"{machine()}; {rounds} round{'s' if rounds > 1 else ''}.\n"
    yield (
        "| rows | plan s | rows/s | CPU us/row | then prepare s | peak MB | resume: first request s | peak MB"
        " | publish s | measure s | peak MB |"
    )
    yield "|---:|" + "---:|" * 10
    for name, several in found.items():
        rows = int(name)

        def of(*path: str, scale: float = 1.0, form: str = ".1f", several: list[Figures] = several) -> str:
            part, key = path
            return Spread.of([scale * one[part][key] for one in several]).text(form)

        rate = Spread.of([rows / one["plan"]["wall"] for one in several]).text(",.0f")
        cells = (
            *(f"{rows:,}", of("plan", "wall", form=".2f"), rate, of("plan", "cpu", scale=1e6 / rows)),
            *(of("plan", "prepare"), of("plan", "peak", form=".0f")),
            *(of("resume", "first"), of("resume", "peak", form=".0f")),
            *(of("publish", "publish"), of("publish", "measure"), of("publish", "peak", form=".0f")),
        )
        yield f"| {' | '.join(cells)} |"
    yield "\nDeduplication: memory is what it takes beyond the imports.\n"
    yield "| rows | contender | seconds | times imagemill's | CPU s | MB |"
    yield "|---:|---|---:|---:|---:|---:|"
    for name, several in found.items():
        for who in several[0].get("dedupe", ()):
            ours = Spread.of([one["dedupe"]["imagemill"]["wall"] for one in several]).median
            them = [one["dedupe"][who] for one in several]
            wall = Spread.of([one["wall"] for one in them])
            cells = (
                *(f"{int(name):,}", who, wall.text(), f"{wall.median / ours:.2f}"),
                Spread.of([one["cpu"] for one in them]).text(),
                Spread.of([one["peak"] - one["before"] for one in them]).text(".0f"),
            )
            yield f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure in rounds that alternate, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=12)
    parser.add_argument("rows", nargs="*", type=int)
    arguments = parser.parse_args()
    arguments.once |= bool(arguments.rows)
    sizes = arguments.rows or ROWS
    with workshop() as shop, emulator_process(Settings(latency_s=0.05, pictures="fast")) as emulated:
        runs = []
        for rows in sizes:
            catalog = shop.folder / f"catalog-{rows}.parquet"
            write_catalog(catalog, rows)
            largest = rows == max(sizes)
            rounds = _ROUNDS_OF_LARGEST if largest else ROUNDS  # five of them as well, if there is time
            measure = partial(grow, shop, emulated, rows, catalog, dedupe=largest)
            runs.append(Run(str(rows), measure, rounds))
        return record(FILE, runs, tables, arguments, sizes=list(sizes))


_PARTS = {"plan": plan, "upload_log": upload_log, "publish": publish, "dedupe": deduplicate}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        from imagemill.cli.spared_imports import spare_pandas

        what, *given = sys.argv[2:]
        if what != "dedupe":
            spare_pandas()
        figures = _PARTS[what](*given)
        print(json.dumps({**figures, "peak": peak_mb()}))
    else:
        sys.exit(main())
