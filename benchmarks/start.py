"""Measures the start and the end of a run beside an empty Prefect flow; writes the tables into start.md.

    python -m benchmarks.start

Each measurement is a command in a process of its own: a flow that does nothing, and ``imagemill run`` on a
catalog of one row, against an emulated API and a local S3 server. Once Prefect starts a temporary server for
each, and once a server runs already. The end is that of a run of 1,000 images. The demo starts as on a new
machine: Prefect makes its database first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

import orjson
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.process_tree import ProcessTree
from benchmarks.recording import Figures, Run, Spread, options, record
from benchmarks.side_by_side import BUCKET, ROOT, Contender, Situation, emulated_api, write_catalog
from benchmarks.workshop import machine
from tests.s3_server import S3Server, s3_server

FILE = Path(__file__).with_suffix(".md")
MANY = 1_000
SERVERS = {"runs already": True, "is temporary": False}
MANY_IMAGES = f"imagemill, {MANY:,} images"
ALONE = ("import imagemill", "imagemill --help")
DEMO = "imagemill demo"
_IMAGEMILL = Contender("imagemill", "imagemill", "25")
_LONGEST_S = 120.0


def measured(what: str, images: int, s3: S3Server, home: Path, prefect_url: str | None) -> Figures:
    """One command: seconds to where its work begins, from its last image to its exit, and in all."""
    catalog = home / "catalog.parquet"
    write_catalog(catalog, images)
    prefect = {"PREFECT_API_URL": prefect_url} if prefect_url else {}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    with emulated_api(Situation("start", images, latency_s=0.0)) as api, (home / "log").open("wb") as output:
        told = {"API_URL": api.url, "S3_URL": s3.endpoint_url, "PREFIX": home.name, "CATALOG": str(catalog)}
        environment = {
            **inherited,
            **s3.environment,
            **prefect,
            "IMAGEMILL_HOME": str(home),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "TOGETHER_API_KEY": "benchmark",
            "PYTHONPATH": str(ROOT),
        }
        command = (
            _IMAGEMILL.command(sys.executable, told)
            if what == "imagemill"
            else [sys.executable, "-m", "benchmarks.contenders.empty_flow"]
        )
        begun = time.time()
        with ProcessTree(command, environment=environment, cwd=ROOT, output=output) as tree:
            code = tree.wait(_LONGEST_S)
            ended = time.time()
        if code != 0:
            sys.exit((home / "log").read_text())
    if what == "imagemill":
        at = logged(home / "runs" / home.name)
        first, last = at["sent"][0], at["done"][-1]
    else:
        first = last = float((home / "began").read_text())
    return {"first": first - begun, "end": ended - last, "all": ended - begun, "cpu": tree.cpu_s}


def logged(folder: Path) -> dict[str, list[float]]:
    """When each kind of event was logged, as timestamps."""
    at = defaultdict(list)
    for line in map(orjson.loads, (folder / "log.jsonl").read_bytes().splitlines()):
        at[line["event"]].append(datetime.fromisoformat(line["at"]).timestamp())
    return at


def demo(home: Path) -> Figures:
    """The demo: seconds to its first picture."""
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    environment = {**inherited, "PREFECT_HOME": str(home / "prefect"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "imagemill", "demo", "--folder", str(home / "demo"), "--images", "50"]
    begun = time.time()
    with (
        (home / "log").open("wb") as output,
        ProcessTree(command, environment=environment, cwd=ROOT, output=output) as tree,
    ):
        tree.wait(_LONGEST_S)
    return {"first": min(logged(home / "demo" / "records")["done"]) - begun, "cpu": tree.cpu_s}


def tables(found: Mapping[str, list[Figures]]) -> str:
    """The tables."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    rounds = min(map(len, found.values()))
    yield f"{machine()}; {rounds} rounds. Seconds: the median, and the least and the most in brackets.\n"
    yield "| Prefect's server | what | to the first request | times the whole empty flow | whole | CPU |"
    yield "|---|---|---:|---:|---:|---:|"
    for server in SERVERS:
        floor = Spread.of([one["all"] for one in found[f"empty, {server}"]]).median
        for what, label in (("empty", "an empty flow"), ("imagemill", "imagemill, one image")):
            one = {
                name: Spread.of([run[name] for run in found[f"{what}, {server}"]])
                for name in ("first", "all", "cpu")
            }
            first = f"{one['first'].median / floor:.2f}" if what == "imagemill" else ""
            cells = (server, label, one["first"].text(), first, one["all"].text(), one["cpu"].text())
            yield f"| {' | '.join(cells)} |"
    yield "\n| command | seconds | CPU |"
    yield "|---|---:|---:|"
    for command in ALONE:
        one = {name: Spread.of([run[name] for run in found[command]]) for name in ("all", "cpu")}
        yield f"| `{command}` | {one['all'].text()} | {one['cpu'].text()} |"
    first = Spread.of([one["first"] for one in found[DEMO]])
    yield f"\nFrom `{DEMO}` to its first picture, where Prefect has not run before: {first.text()} s."
    end = Spread.of([one["end"] for one in found[MANY_IMAGES]])
    yield f"\nFrom the last of {MANY:,} images to the exit: {end.text()} s, with a server that runs already."


def command_alone(command: str) -> Figures:
    """Seconds and CPU of a command that needs no server."""
    program = ["-c", command] if command.startswith("import") else ["-m", *command.split()]
    begun, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *program], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"all": time.perf_counter() - begun, "cpu": cpu}


def main() -> int:
    """Measure in rounds that alternate, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=8)
    arguments = parser.parse_args()
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory() as work,
        s3_server(Path(work)) as s3,
        prefect_test_harness(server_startup_timeout=180),
    ):
        s3.client().create_bucket(Bucket=BUCKET)
        url = str(get_current_settings().api.url)
        os.environ["PREFECT_HOME"] = f"{work}/prefect"

        def measure(what: str, images: int, *, server_runs: bool) -> Figures:
            home = Path(work, f"run-{next(numbers)}")
            home.mkdir()
            return measured(what, images, s3, home, url if server_runs else None)

        measure("empty", 1, server_runs=False)  # makes the temporary server's database
        runs = [
            *(
                Run(f"{what}, {server}", partial(measure, what, 1, server_runs=is_running))
                for server, is_running in SERVERS.items()
                for what in ("empty", "imagemill")
            ),
            Run(MANY_IMAGES, partial(measure, "imagemill", MANY, server_runs=True)),
            *(Run(command, partial(command_alone, command)) for command in ALONE),
            Run(DEMO, lambda: demo(Path(work, f"demo-{next(numbers)}"))),
        ]
        return record(FILE, runs, tables, arguments, sizes=MANY)


if __name__ == "__main__":
    sys.exit(main())
