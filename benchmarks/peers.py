"""Runs imagemill beside what a user would take instead; writes the tables into benchmarks/peers.md.

    python -m benchmarks.peers [--quick] [--only NAME ...] [--environments FOLDER]

Each contender is a process of its own. All are given the same catalog, the same emulated API and the same
S3 server, in these situations: a limit that they are told, one that is lower than what they are told, no
limit and no latency (once with few images, to tell the start from the work), and SIGKILL once half of the
images have been answered, after which the same command is started again. Peers come from PyPI, each into an
environment of its own, which is thrown away unless ``--environments`` names a folder to keep them in.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from benchmarks.recording import ROUNDS, Figures, Run, Spread, options, record
from benchmarks.side_by_side import LATENCY_S, Contender, Servers, Situation, python_of, run
from benchmarks.workshop import machine

FILE = Path(__file__).with_suffix(".md")
FEW = 50
"""Images of the run that tells the start from the work."""
MEAN_LATENCY_S = LATENCY_S * math.exp(0.35**2 / 2)
"""Of the emulator's lognormal latency."""
LIMITS = {"limited": 30, "tight": 15}
"""Requests at once that the emulated account allows."""

_PIECES = tuple(f"{name}=={version(name)}" for name in ("httpx", "boto3"))
_TOLD = "25"
"""Requests at once that a contender is told to make, where its user does not know the limit."""
CONTENDERS = (
    Contender("bare", "bare loop: httpx and boto3", _TOLD),
    Contender("bare_obstore", "bare loop: httpx and obstore", _TOLD, script="bare", put_with="obstore"),
    Contender("guide", "the guide: chunks, checkpoint", _TOLD),
    Contender("prefect_map", f"Prefect {version('prefect')}, a task per image, `.map`", _TOLD),
    Contender("sdk_loop", f"Together's SDK {version('together')} in a loop", _TOLD),
    Contender("ray_data", "Ray Data 2.60.0, `map_batches`", _TOLD, ("ray[data]==2.60.0", *_PIECES)),
    Contender("daft_udf", "Daft 0.7.26, async UDF", _TOLD, ("daft==0.7.26", *_PIECES)),
    Contender(
        "litellm_router", "LiteLLM 1.110.2, `Router`", _TOLD, ("litellm==1.110.2", "pyarrow", *_PIECES)
    ),
    Contender("pixeltable_udf", "Pixeltable 0.7.21, async UDF", _TOLD, ("pixeltable==0.7.21", *_PIECES)),
    Contender("nemo_designer", "NeMo Data Designer 0.9.7", _TOLD, ("data-designer==0.9.7", *_PIECES)),
    Contender("imagemill", f"imagemill {version('imagemill')}, `imagemill run`", "auto"),
)


def situations(*, quick: bool) -> dict[Situation, int]:
    """All of them, and how many rounds of each the page needs; ``quick`` ones only show that it works."""
    many, some, free = (100, 100, 200) if quick else (1_000, 300, 500)
    return {
        Situation("few", FEW, latency_s=0.0): ROUNDS,
        Situation("free", free, latency_s=0.0): ROUNDS,
        # They mostly wait, so that they differ little from round to round, and take long.
        Situation("limited", many, max_concurrent=LIMITS["limited"]): 1,
        Situation("tight", some, max_concurrent=LIMITS["tight"]): 1,
        Situation("killed", some, max_concurrent=LIMITS["limited"], kill=True): 1,
    }


def page(contenders: list[Contender], found: Mapping[str, list[Figures]]) -> str:
    """The tables."""
    return "\n".join(_lines(contenders, found))


def _lines(contenders: list[Contender], found: Mapping[str, list[Figures]]) -> Iterator[str]:
    def of(each: Contender, situation: str) -> list[Figures]:
        return found[f"{each.name} {situation}"]

    rounds = {name: min(len(of(each, name)) for each in contenders) for name in ("free", "limited", "killed")}
    images = {name: of(contenders[0], name)[0]["images"] for name in ("free", "limited", "tight", "killed")}
    yield f"{machine()}. Rounds: {rounds['free']} without a limit, {rounds['limited']} at one.\n"
    yield "## With no limit and no latency\n"
    yield f"{images['free']:,} images, and {FEW} to tell the start from the work.\n"
    yield from header(
        *("contender", "CPU ms per additional image", "times bare, boto3", "times bare, obstore"),
        *("CPU ms per image, whole run", "CPU s of start and end", "images/s", "peak memory MB", "missing"),
    )
    marginal = {
        each.name: Spread.of(
            [
                1000 * (free["cpu_s"] - few["cpu_s"]) / (free["images"] - FEW)
                for few, free in zip(of(each, "few"), of(each, "free"), strict=False)
            ]
        )
        for each in contenders
    }
    for each in contenders:
        one, cost = of(each, "free"), marginal[each.name]
        times = [
            f"{cost.median / marginal[floor].median:.2f}" if floor in marginal else "-"
            for floor in ("bare", "bare_obstore")
        ]
        start_s = Spread.of([few["cpu_s"] for few in of(each, "few")]).median - FEW * cost.median / 1000
        peaks = [max(f["peak_mb"] for f in of(each, name)) for name in ("limited", "free")]
        yield row(
            *(each.label, cost.text(), *times),
            *(Spread.of([1000 * f["cpu_s"] / f["images"] for f in one]).text(), f"{start_s:.1f}"),
            Spread.of([(f["images"] - f["missing"]) / f["working_s"] for f in one]).text(".0f"),
            *(f"{max(peaks):.0f}", f"{max(f['missing'] for f in one):,}"),
        )
    yield "\n## At a limit on concurrent requests"
    known = {
        "limited": "All but imagemill are told this limit.",
        "tight": f"It is lower than the {_TOLD} that all but imagemill are told.",
    }
    for name, limit in LIMITS.items():
        allowed = limit / MEAN_LATENCY_S
        possible = f"{images[name]:,} images, {allowed:.1f} images/s are possible."
        yield f"\n{limit} requests at once, {possible} {known[name]}\n"
        yield from header("contender", "at once", "images/s", "of the limit", "429s", "missing", "wall s")
        for each in contenders:
            several = of(each, name)
            rates = [(f["images"] - f["missing"]) / f["working_s"] for f in several]
            yield row(
                *(each.label, _at(each, name).at_once, Spread.of(rates).text(".1f")),
                Spread.of([rate / allowed for rate in rates]).text(".1%"),
                Spread.of([f["refused"] / f["requests"] for f in several]).text(".1%"),
                Spread.of([f["missing"] for f in several]).text(",.0f"),
                Spread.of([f["wall_s"] for f in several]).text(".0f"),
            )
    yield "\n## Killed half way, and started again\n"
    yield f"{images['killed']:,} images, 30 requests at once.\n"
    yield from header(
        "contender", "images lost", "images paid twice", "in flight at the kill", "wall s", "exit codes"
    )
    for each in contenders:
        several = of(each, "killed")
        codes = ["killed" if code is None else str(code) for f in several for code in f["codes"]]
        yield row(
            each.label,
            *(
                Spread.of([f[name] for f in several]).text(",.0f")
                for name in ("missing", "twice", "in_flight")
            ),
            *(Spread.of([f["wall_s"] for f in several]).text(".0f"), ", ".join(dict.fromkeys(codes))),
        )
    yield ""


def header(*names: str) -> Iterator[str]:
    """The first lines of a table."""
    yield row(*names)
    yield "|---|" + "---:|" * (len(names) - 1)


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _told(situation: str) -> str:
    """Requests at once that a contender is told: the limit, or a usual number where that is higher."""
    return str(LIMITS["limited"]) if situation in {"limited", "killed"} else _TOLD


def _at(contender: Contender, situation: str) -> Contender:
    if contender.at_once == "auto":
        return contender
    return replace(contender, at_once=_told(situation))


def main() -> int:
    """Measure in rounds that alternate, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=20)
    parser.add_argument(
        "--quick", action="store_true", help="one round of few images, to see that it works; no table"
    )
    parser.add_argument("--only", nargs="+", choices=[each.name for each in CONTENDERS], default=None)
    parser.add_argument("--environments", type=Path, help="keep the peers' environments in this folder")
    arguments = parser.parse_args()
    arguments.once |= arguments.quick or arguments.only is not None
    chosen = [each for each in CONTENDERS if arguments.only is None or each.name in arguments.only]
    with ExitStack() as stack:
        environments = arguments.environments or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pythons = {each.name: python_of(each, environments.absolute()) for each in chosen}
        servers = stack.enter_context(Servers())
        stack.enter_context(prefect_test_harness(server_startup_timeout=180))
        prefect_url = str(get_current_settings().api.url)
        wanted = situations(quick=arguments.quick)
        runs = [
            Run(
                f"{each.name} {situation.name}",
                partial(run, _at(each, situation.name), situation, pythons[each.name], servers, prefect_url),
                rounds,
            )
            for situation, rounds in wanted.items()
            for each in chosen
        ]
        sizes = [[situation.name, situation.images] for situation in wanted]
        return record(FILE, runs, partial(page, chosen), arguments, sizes=sizes)


if __name__ == "__main__":
    sys.exit(main())
