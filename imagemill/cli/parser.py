"""The command line: its commands and their options.

Only the options of the command that is given are made: they are described by the settings, which take time to
load.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        print(f"imagemill: {message}. See {self.prog} --help.", file=sys.stderr)
        sys.exit(2)


class Command(NamedTuple):
    """A command: what --help says of it, and its options."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    description: str | None = None


def parser(given: Sequence[str]) -> Parser:
    """The parser of a command line. What it parses has the command's name as ``command``."""
    made = Parser(
        prog="imagemill",
        description="Turn a Parquet catalog of prompts into images on S3.",
        epilog="Exit codes: 0 every image is done; 1 finished, some failed or every row was rejected;"
        " 2 unusable input; 3 stopped early, can be resumed.",
    )
    made.add_argument("--version", action="version", version=f"imagemill {version('imagemill')}")
    parsers = made.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        one = parsers.add_parser(name, help=command.help, description=command.description, allow_abbrev=False)
        if name in given:
            one.register("type", None, _text)
            one.register("type", Path, _local_path)
            command.options(one)
            if name in _WITH_PROGRESS:
                one.add_argument(
                    "--log-format",
                    choices=("text", "json"),
                    help="write one line per job to stderr instead of the progress",
                )
            one.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parsers.add_parser("emulator", help="vendors' image APIs on this machine; see emulator --help")
    return made


def _text(given: str) -> str:
    """An argument; it can be stored, and sent to an API."""
    try:
        given.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(given).decode(errors="backslashreplace")
        raise argparse.ArgumentTypeError(
            f"'{shown}' is not UTF-8: check the terminal's encoding, or rename the file"
        ) from None
    return given


def _local_path(given: str) -> Path:
    if re.match("s3[an]?:/", given, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{given!r} is on S3, where a path on this machine is asked for")
    return Path(_text(given))


def _run(run: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import add_options

    run.add_argument("catalog", metavar="CATALOG", help="a Parquet file, folder or glob; local or s3://")
    add_options(run)
    run.add_argument("--dry-run", action="store_true", help="only show what the run would do and cost")


def _refresh(refresh: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import RUN_GROUPS, add_options

    refresh.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(refresh, groups=(*RUN_GROUPS, "refresh"))
    refresh.add_argument(
        "--prune", action="store_true", help="delete images that no row has used for --prune-after days"
    )


def _estimate(estimate: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import add_options

    estimate.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(estimate)


def _preview(preview: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import add_options

    preview.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(preview)
    preview.add_argument(
        "--images", type=int, default=12, metavar="N", help="how many images to make (default: %(default)s)"
    )


def _resume(resume: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, RESUME_OPTIONS, add_options

    resume.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    add_options(resume, (*RESUME_OPTIONS, *BUCKET_OPTIONS, "--base-url", "--image-host", "--judge"))


def _retry_failed(retry: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, RESUME_OPTIONS, add_options

    retry.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    retry.add_argument(
        "--permanent", action="store_true", help="also retry jobs that would fail again with the same input"
    )
    retry.add_argument(
        "--from",
        dest="choices",
        type=Path,
        metavar="FILE",
        help="instead, apply the choices of a review: make pictures anew, keep or reject them",
    )
    add_options(retry, (*RESUME_OPTIONS, *BUCKET_OPTIONS, "--base-url", "--image-host", "--judge"))


def _calibrate(calibrate: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import CALIBRATE_GROUPS, add_options

    add_options(calibrate, groups=CALIBRATE_GROUPS)
    calibrate.add_argument("--plot", type=Path, metavar="FILE", help="write a plot to this HTML file")


def _dashboard(dashboard: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    add_options(dashboard, (*BUCKET_OPTIONS, "--regression-share"), ("output", "regressions"))


def _runs(runs: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    runs.add_argument("run_id", metavar="RUN_ID", nargs="?", help="one run; by default, all runs")
    runs.add_argument("--failed", action="store_true", help="show why each job failed, attempt by attempt")
    runs.add_argument("--id", metavar="ID", help="show what happened to the catalog row with this id")
    add_options(runs, BUCKET_OPTIONS)


def _models(models: argparse.ArgumentParser) -> None:
    models.add_argument("name", metavar="NAME", nargs="?", help="a model, a part of its name, or a vendor")
    models.add_argument("--provider", metavar="NAME", help="only this vendor's")
    models.add_argument(
        "--base-url", metavar="URL", help="the address of fal or Replicate, if not the vendor's own"
    )


def _check(check: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import CHECK_OPTIONS, add_options

    add_options(check, CHECK_OPTIONS, routes=True)
    check.add_argument("--image", action="store_true", help="also buy one real image, for its price")


def _demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--folder",
        type=Path,
        default=Path("imagemill-demo"),
        help="where to put the pictures and the report (default: %(default)s)",
    )
    demo.add_argument("--images", type=int, default=150, help="number of catalog rows (default: %(default)s)")


def _reconcile(reconcile: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    reconcile.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    reconcile.add_argument(
        "--from", dest="export", type=Path, metavar="FILE", help="a CSV with one charge per row"
    )
    reconcile.add_argument(
        "--column",
        action="append",
        metavar="NAME=COLUMN",
        help="which columns of the CSV hold request_id and usd, if that is not clear from their names. Can be"
        " repeated.",
    )
    reconcile.add_argument(
        "--base-url", metavar="URL", help="the address to ask for charges, if not the vendor's own"
    )
    reconcile.add_argument(
        "--route", metavar="NAME", help="of a run over several routes, compare only this one"
    )
    add_options(reconcile, BUCKET_OPTIONS)


def _review(review: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    review.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    add_options(review, BUCKET_OPTIONS)


def _compare(compare: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    compare.add_argument("run_a", metavar="RUN_A", help="the id of a run")
    compare.add_argument("run_b", metavar="RUN_B", help="the id of the run to compare with it")
    compare.add_argument(
        "--images", type=int, default=60, metavar="N", help="most pairs of pictures (default: %(default)s)"
    )
    add_options(compare, BUCKET_OPTIONS)


def _forget(forget: argparse.ArgumentParser) -> None:
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    forget.add_argument("run_ids", metavar="RUN_ID", nargs="*", help="the ids of runs")
    forget.add_argument(
        "--older-than", metavar="AGE", help="all runs planned so long ago: 12h, 90d or 26w; needs --yes"
    )
    forget.add_argument("--unfinished", action="store_true", help="also runs that can still be resumed")
    forget.add_argument("--yes", action="store_true", help="delete what --older-than finds, not only list it")
    add_options(forget, BUCKET_OPTIONS)


COMMANDS = {
    "run": Command("generate the images of a catalog", _run),
    "refresh": Command(
        "generate what is new or changed in a catalog, and retire what is gone",
        _refresh,
        "Bring the images of a catalog up to date: generate those of new and changed rows, and"
        " retire rows that have left the catalog. Unchanged rows cost nothing. A refresh that would take too"
        " much from the manifest is refused before it costs anything.",
    ),
    "estimate": Command("show what a run would do and cost", _estimate),
    "preview": Command(
        "make a few images of a catalog, and show what all would cost",
        _preview,
        "Make a few real images, spread over the whole catalog, and a page with them, their"
        " prompts and what all images would cost. The manifest does not change; imagemill resume makes the"
        " rest.",
    ),
    "resume": Command("resume a run that stopped", _resume),
    "retry-failed": Command("retry the failed jobs of a run", _retry_failed),
    "calibrate": Command(
        "measure an account's limit with real, paid images",
        _calibrate,
        "Measure how many concurrent requests and images per minute an account allows. This makes"
        " real images, which the vendor charges for, within a budget. Runs with --concurrency auto then start"
        " from the result.",
    ),
    "check": Command(
        "try key, model, bucket, store and Prefect before a first run",
        _check,
        "Try what a run needs, at no cost: key and model, the bucket (one small object written,"
        " replaced, read, copied and deleted), the job store and Prefect. One line for each says ok, or what"
        " to do.",
    ),
    "demo": Command("see it all work on this machine, at no cost", _demo),
    "dashboard": Command("draw throughput, errors, latency and cost of all runs over weeks", _dashboard),
    "runs": Command("list runs, and show why jobs failed", _runs),
    "reconcile": Command(
        "compare a run with the vendor's bill, request by request",
        _reconcile,
        "Compare what a run booked for each request with what the vendor charged: with fal's"
        " billing events, which need an admin key (FAL_ADMIN_KEY, or FAL_KEY if it is one), or with a bill"
        " that you exported as CSV. The comparison goes to the run's records and into its report. Exit code"
        " 1: they differ.",
    ),
    "review": Command(
        "show a run's suspect pictures on a page, and choose what becomes of each",
        _review,
        "Make a page of a run's pictures that look wrong, with their prompts and the reasons."
        " Its choices (keep, redo, reject) are saved as a file for imagemill retry-failed RUN_ID --from.",
    ),
    "compare": Command(
        "lay two runs side by side: their metrics, and the same rows' pictures",
        _compare,
        "Make a page with the metrics of two runs, and the pictures that each has of the same"
        " rows, by id and variant. Rows whose pictures differ come first.",
    ),
    "forget": Command(
        "delete the records of old runs; pictures, manifest and metrics stay",
        _forget,
        "Delete the folders of runs, on this machine and, with --output, in the bucket. Pictures,"
        " the manifest and the runs' rows in metrics/ stay. Runs that can be resumed are kept unless you say"
        " --unfinished, and runs in progress always.",
    ),
    "models": Command("list models: what each takes and costs, and where that is from", _models),
}
"""In the order of --help."""

_WITH_PROGRESS = ("run", "refresh", "preview", "resume", "retry-failed")
