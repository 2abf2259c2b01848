"""Runs imagemill beside what a user would take instead; writes the table to benchmarks/peers.md.

    python -m benchmarks.peers [--quick] [--only NAME ...] [--environments FOLDER]

Each contender is a process of its own. All are given the same catalog, the same emulated API and the same S3
server, one after the other, in these situations: a limit above what one would set by hand, one below it,
no limit and no latency (once with few images, to tell the start from the work), and SIGKILL once half of the
images have been answered, after which the same command is started again. Peers come from PyPI, each into an
environment of its own, which is thrown away unless ``--environments`` names a folder to keep them in.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.side_by_side import (
    BUCKET,
    LATENCY_S,
    Contender,
    Outcome,
    Situation,
    python_of,
    run,
    wait_until_quiet,
)
from benchmarks.workshop import machine
from tests.s3_server import s3_server

FEW = 50
"""Images of the run that tells the start from the work."""
MEAN_LATENCY_S = LATENCY_S * math.exp(0.35**2 / 2)
"""Of the emulator's lognormal latency."""

INTRODUCTION = """\
Each contender is a process of its own, given the same catalog, emulated API (Together's: 1024 x 1024 JPEG in
the answer, lognormal latency with a median of 0.5 s) and S3 server, one after the other, all on this machine.

- *images/s*: images in the bucket, by the time from the API's first request to its last answer. *wall*: the
  command from start to end, with imports, records and reports.
- *at once*: the contender's configured concurrency; `auto` is not configured.
- *missing*: rows of the catalog without an image in the bucket, after all the contender's own retries.
- *CPU ms/image*: the CPU of one additional image, in the whole process tree: the CPU of {many:,} images minus
  that of {few}, divided by the difference. *start and end*: the rest. *all*: the whole run's CPU per image.
  Servers (API, S3, Prefect's) are not included.
- *peak memory*: the largest sum of resident memory of the process tree, in the first and third table's runs.
- *killed*: SIGKILL to all its processes once half of {some:,} images were answered, at a limit of 30 at
  once; then the same command again. *paid twice*: images on the API's bill beyond one per row. *in flight*:
  requests that the API was working on at the kill, which it completes and bills all the same.
"""

_PIECES = tuple(f"{name}=={version(name)}" for name in ("httpx", "boto3"))
CONTENDERS = (
    Contender("bare", "bare loop: httpx and `put_object`", "25"),
    Contender("guide", "the guide: chunks of 25, checkpoint", "25"),
    Contender("prefect_map", f"Prefect {version('prefect')}, a task an image, `.map`", "25"),
    Contender("sdk_loop", f"Together's SDK {version('together')} in a loop", "25"),
    Contender("ray_data", "Ray Data 2.60.0, `map_batches`", "25", ("ray[data]==2.60.0", *_PIECES)),
    Contender("daft_udf", "Daft 0.7.26, async UDF", "25", ("daft==0.7.26", *_PIECES)),
    Contender("imagemill", f"imagemill {version('imagemill')}, `imagemill run`", "auto"),
)


def situations(*, quick: bool) -> tuple[Situation, ...]:
    """All of them; ``quick`` ones only show that it works."""
    many, some = (300, 300) if quick else (1_000, 500)
    return (
        Situation("limited", many, max_concurrent=30),
        Situation("tight", some, max_concurrent=15),
        Situation("few", FEW, latency_s=0.0),
        Situation("free", many, latency_s=0.0),
        Situation("killed", some, max_concurrent=30, kill=True),
    )


def page(outcomes: list[Outcome], contenders: list[Contender]) -> Iterator[str]:
    """The page of the outcomes, line by line."""
    found = {(each.contender, each.situation): each for each in outcomes}
    yield from ("# Compared with the alternatives\n", f"`python -m benchmarks.peers`, {machine()}.\n")
    images = {each.situation: each.images for each in outcomes}
    many, some = images["limited"], images["tight"]
    yield INTRODUCTION.format(many=many, some=some, few=FEW)
    yield "## At a hidden limit\n"
    for situation, limit in (("limited", 30), ("tight", 15)):
        allowed = limit / MEAN_LATENCY_S
        yield f"{limit} requests at once, {images[situation]:,} images: {allowed:.1f} images/s are possible."
        yield ""
        yield from header("contender", "at once", "images/s", "of the limit", "429s", "missing", "wall s")
        for each in contenders:
            one = found[each.name, situation]
            rate = (one.images - one.missing) / one.working_s
            yield row(
                *(each.label, each.at_once, f"{rate:.1f}", f"{rate / allowed:.1%}"),
                *(f"{one.refused / one.requests:.1%}", f"{one.missing:,}", f"{one.wall_s:.0f}"),
            )
        yield ""
    yield "## With no limit and no latency\n"
    yield from header(
        *("contender", "images/s", "CPU ms/image", "times bare", "images/CPU s, times Prefect `.map`"),
        *("CPU s of start and end", "CPU ms/image, all", "peak memory MB", "missing"),
    )
    marginal = {each.name: cpu_an_image(found, each.name) for each in contenders}
    for each in contenders:
        one, few = found[each.name, "free"], found[each.name, "few"]
        cpu = marginal[each.name]
        bare, mapped = (marginal.get(name, math.nan) for name in ("bare", "prefect_map"))
        peak = max(found[each.name, name].peak_mb for name in ("limited", "free"))
        yield row(
            *(each.label, f"{(one.images - one.missing) / one.working_s:.0f}", f"{1000 * cpu:.2f}"),
            *(f"{cpu / bare:.2f}", f"{mapped / cpu:.1f}", f"{few.cpu_s - FEW * cpu:.1f}"),
            *(f"{1000 * one.cpu_s / one.images:.2f}", f"{peak:.0f}", f"{one.missing:,}"),
        )
    yield "\n## Killed half way, and started again\n"
    yield from header(
        "contender", "images lost", "images paid twice", "in flight at the kill", "wall s", "exit codes"
    )
    for each in contenders:
        one = found[each.name, "killed"]
        codes = ", ".join("killed" if code is None else str(code) for code in one.codes)
        yield row(
            each.label, f"{one.missing:,}", f"{one.twice:,}", str(one.in_flight), f"{one.wall_s:.0f}", codes
        )
    yield ""


def cpu_an_image(found: dict[tuple[str, str], Outcome], name: str) -> float:
    """CPU seconds of one additional image."""
    few, many = found[name, "few"], found[name, "free"]
    return (many.cpu_s - few.cpu_s) / (many.images - few.images)


def header(*names: str) -> Iterator[str]:
    """The first lines of a table."""
    yield row(*names)
    yield "|---|" + "---:|" * (len(names) - 1)


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run everything, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="300 images, to see that it works; no table")
    parser.add_argument("--only", nargs="+", choices=[each.name for each in CONTENDERS], default=None)
    parser.add_argument("--environments", type=Path, help="keep the peers' environments in this folder")
    arguments = parser.parse_args()
    chosen = [each for each in CONTENDERS if arguments.only is None or each.name in arguments.only]
    outcomes = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environments = arguments.environments or folder / "environments"
        pythons = {each.name: python_of(each, environments.absolute()) for each in chosen}
        stack.enter_context(prefect_test_harness(server_startup_timeout=180))
        prefect_url = str(get_current_settings().api.url)
        for situation in situations(quick=arguments.quick):
            # A server of its own for each situation: the disk need not hold all of them.
            with tempfile.TemporaryDirectory() as data, s3_server(Path(data)) as s3:
                s3.client().create_bucket(Bucket=BUCKET)
                for each in chosen:
                    wait_until_quiet()
                    outcomes.append(run(each, situation, pythons[each.name], s3, prefect_url, folder))
    text = "\n".join(page(outcomes, chosen))
    if arguments.quick or arguments.only:
        print(text)
    else:
        Path(__file__).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
