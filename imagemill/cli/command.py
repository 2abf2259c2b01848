"""The command ``imagemill``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imagemill.cli.exit_codes import DONE, STOPPED, UNUSABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["emulator"]:
        # The emulator is a separate program that nothing here imports: replace this process by it.
        os.execv(sys.executable, [sys.executable, "-m", "imagemill.emulator", *given[1:]])  # noqa: S606
    _prepare_prefect()
    from imagemill.cli.options import Parser

    parser = _parser(Parser)
    chosen = parser.parse_args(given)
    from imagemill.cli.terminal import complain
    from imagemill.errors import InputError, StoreUnavailableError
    from imagemill.secrets import without_secrets

    run: Callable[[argparse.Namespace], int] = chosen.run
    try:
        if run not in _FLOWS or getattr(chosen, "dry_run", False):
            return run(chosen)
        from imagemill.cli.prefect_server import own_server

        with own_server():
            return run(chosen)
    except InputError as error:
        complain(str(error))
        return UNUSABLE
    except StoreUnavailableError as error:
        complain(f"{error} Run the same command again: finished images are kept.")
        return STOPPED
    except KeyboardInterrupt:
        complain("Interrupted before anything was sent to the API.")
        return STOPPED
    except Exception as error:
        if (shown := without_secrets(error)) is not error:
            raise shown from None
        raise


def _prepare_prefect() -> None:
    """Silence Prefect: its console output would break the progress bar and --json."""
    quiet = {
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


def _parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    from imagemill.cli.options import (
        BUCKET_OPTIONS,
        CALIBRATE_GROUPS,
        RESUME_OPTIONS,
        add_options,
    )

    parser = kind(
        prog="imagemill",
        description="Turn a Parquet catalog of prompts into images on S3.",
        epilog="Exit codes: 0 every image is done; 1 finished, some failed or every row was rejected;"
        " 2 unusable input; 3 stopped early, can be resumed.",
    )
    parser.add_argument("--version", action="version", version=f"imagemill {version('imagemill')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="generate the images of a catalog", allow_abbrev=False)
    run.add_argument("catalog", metavar="CATALOG", help="a Parquet file, folder or glob; local or s3://")
    add_options(run)
    run.add_argument("--dry-run", action="store_true", help="only show what the run would do and cost")
    run.set_defaults(run=_run)

    refresh = _refresh_parser(commands)

    estimate = commands.add_parser("estimate", help="show what a run would do and cost", allow_abbrev=False)
    estimate.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(estimate)
    estimate.set_defaults(run=_estimate)

    preview = _preview_parser(commands)

    resume = commands.add_parser("resume", help="resume a run that stopped", allow_abbrev=False)
    resume.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    add_options(resume, (*RESUME_OPTIONS, *BUCKET_OPTIONS, "--base-url", "--image-host", "--judge"))
    resume.set_defaults(run=_resume)

    retry = commands.add_parser("retry-failed", help="retry the failed jobs of a run", allow_abbrev=False)
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
    add_options(retry, (*RESUME_OPTIONS, *BUCKET_OPTIONS, "--base-url", "--judge"))
    retry.set_defaults(run=_retry_failed)

    calibrate = commands.add_parser(
        "calibrate",
        help="measure an account's limit with real, paid images",
        description="Measure how many concurrent requests and images per minute an account allows. This makes"
        " real images, which the vendor charges for, within a budget. Runs with --concurrency auto then start"
        " from the result.",
        allow_abbrev=False,
    )
    add_options(calibrate, groups=CALIBRATE_GROUPS)
    calibrate.add_argument("--plot", type=Path, metavar="FILE", help="write a plot to this HTML file")
    calibrate.set_defaults(run=_calibrate)

    check = _check_parser(commands)

    demo = _demo_parser(commands)

    dashboard = commands.add_parser(
        "dashboard",
        help="draw throughput, errors, latency and cost of all runs over weeks",
        allow_abbrev=False,
    )
    add_options(dashboard, (*BUCKET_OPTIONS, "--regression-share"), ("output", "regressions"))
    dashboard.set_defaults(run=_dashboard)

    runs = commands.add_parser("runs", help="list runs, and show why jobs failed", allow_abbrev=False)
    runs.add_argument("run_id", metavar="RUN_ID", nargs="?", help="one run; by default, all runs")
    runs.add_argument("--failed", action="store_true", help="show why each job failed, attempt by attempt")
    runs.add_argument("--id", metavar="ID", help="show what happened to the catalog row with this id")
    add_options(runs, BUCKET_OPTIONS)
    runs.set_defaults(run=_runs)

    about_runs = [
        add(commands) for add in (_reconcile_parser, _review_parser, _compare_parser, _forget_parser)
    ]

    models = commands.add_parser(
        "models", help="list models: what each takes and costs, and where that is from", allow_abbrev=False
    )
    models.add_argument("name", metavar="NAME", nargs="?", help="a model, or a part of its name")
    models.add_argument("--provider", metavar="NAME", help="only this vendor's")
    models.add_argument(
        "--base-url", metavar="URL", help="the address of fal or Replicate, if not the vendor's own"
    )
    models.set_defaults(run=_models)

    for command in (run, refresh, preview, resume, retry):
        command.add_argument(
            "--log-format",
            choices=("text", "json"),
            help="write one line per job to stderr instead of the progress",
        )
    others = (retry, calibrate, check, demo, dashboard, runs, *about_runs, models)
    for command in (run, refresh, estimate, preview, resume, *others):
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    commands.add_parser("emulator", help="vendors' image APIs on this machine; see emulator --help")
    return parser


def _refresh_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import RUN_GROUPS, add_options

    refresh: argparse.ArgumentParser = commands.add_parser(
        "refresh",
        help="generate what is new or changed in a catalog, and retire what is gone",
        description="Bring the images of a catalog up to date: generate those of new and changed rows, and"
        " retire rows that have left the catalog. Unchanged rows cost nothing. A refresh that would take too"
        " much from the manifest is refused before it costs anything.",
        allow_abbrev=False,
    )
    refresh.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(refresh, groups=(*RUN_GROUPS, "refresh"))
    refresh.add_argument(
        "--prune", action="store_true", help="delete images that no row has used for --prune-after days"
    )
    refresh.set_defaults(run=_refresh)
    return refresh


def _preview_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import add_options

    preview: argparse.ArgumentParser = commands.add_parser(
        "preview",
        help="make a few images of a catalog, and show what all would cost",
        description="Make a few real images, spread over the whole catalog, and a page with them, their"
        " prompts and what all images would cost. The manifest does not change; imagemill resume makes the"
        " rest.",
        allow_abbrev=False,
    )
    preview.add_argument("catalog", metavar="CATALOG", help="as for run")
    add_options(preview)
    preview.add_argument(
        "--images", type=int, default=12, metavar="N", help="how many images to make (default: %(default)s)"
    )
    preview.set_defaults(run=_preview)
    return preview


def _demo_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    demo: argparse.ArgumentParser = commands.add_parser(
        "demo", help="see it all work on this machine, at no cost"
    )
    demo.add_argument(
        "--folder",
        type=Path,
        default=Path("imagemill-demo"),
        help="where to put the pictures and the report (default: %(default)s)",
    )
    demo.add_argument("--images", type=int, default=150, help="number of catalog rows (default: %(default)s)")
    demo.set_defaults(run=_demo)
    return demo


def _check_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import CHECK_OPTIONS, add_options

    check: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="try key, model, bucket, store and Prefect before a first run",
        description="Try what a run needs, at no cost: key and model, the bucket (one small object written,"
        " replaced, read, copied and deleted), the job store and Prefect. One line for each says ok, or what"
        " to do.",
        allow_abbrev=False,
    )
    add_options(check, CHECK_OPTIONS, routes=True)
    check.add_argument("--image", action="store_true", help="also buy one real image, for its price")
    check.set_defaults(run=_check)
    return check


def _reconcile_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    reconcile: argparse.ArgumentParser = commands.add_parser(
        "reconcile",
        help="compare a run with the vendor's bill, request by request",
        description="Compare what a run booked for each request with what the vendor charged: with fal's"
        " billing events, which need an admin key (FAL_ADMIN_KEY, or FAL_KEY if it is one), or with a bill"
        " that you exported as CSV. The comparison goes to the run's records and into its report. Exit code"
        " 1: they differ.",
        allow_abbrev=False,
    )
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
    reconcile.set_defaults(run=_reconcile)
    return reconcile


def _review_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    review: argparse.ArgumentParser = commands.add_parser(
        "review",
        help="show a run's suspect pictures on a page, and choose what becomes of each",
        description="Make a page of a run's pictures that look wrong, with their prompts and the reasons."
        " Its choices (keep, redo, reject) are saved as a file for imagemill retry-failed RUN_ID --from.",
        allow_abbrev=False,
    )
    review.add_argument("run_id", metavar="RUN_ID", help="the id of the run")
    add_options(review, BUCKET_OPTIONS)
    review.set_defaults(run=_review)
    return review


def _compare_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    compare: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="lay two runs side by side: their metrics, and the same rows' pictures",
        description="Make a page with the metrics of two runs, and the pictures that each has of the same"
        " rows, by id and variant. Rows whose pictures differ come first.",
        allow_abbrev=False,
    )
    compare.add_argument("run_a", metavar="RUN_A", help="the id of a run")
    compare.add_argument("run_b", metavar="RUN_B", help="the id of the run to compare with it")
    compare.add_argument(
        "--images", type=int, default=60, metavar="N", help="most pairs of pictures (default: %(default)s)"
    )
    add_options(compare, BUCKET_OPTIONS)
    compare.set_defaults(run=_compare)
    return compare


def _forget_parser(commands: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - argparse names no type
    from imagemill.cli.options import BUCKET_OPTIONS, add_options

    forget: argparse.ArgumentParser = commands.add_parser(
        "forget",
        help="delete the records of old runs; pictures, manifest and metrics stay",
        description="Delete the folders of runs, on this machine and, with --output, in the bucket. Pictures,"
        " the manifest and the runs' rows in metrics/ stay. Runs that can be resumed are kept unless you say"
        " --unfinished, and runs in progress always.",
        allow_abbrev=False,
    )
    forget.add_argument("run_ids", metavar="RUN_ID", nargs="*", help="the ids of runs")
    forget.add_argument(
        "--older-than", metavar="AGE", help="all runs planned so long ago: 12h, 90d or 26w; needs --yes"
    )
    forget.add_argument("--unfinished", action="store_true", help="also runs that can still be resumed")
    forget.add_argument("--yes", action="store_true", help="delete what --older-than finds, not only list it")
    add_options(forget, BUCKET_OPTIONS)
    forget.set_defaults(run=_forget)
    return forget


def _run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _estimate(arguments)
    from imagemill.cli.running import check, run_and_show
    from imagemill.flows.generate_catalog import generate_catalog

    settings = _settings_of_run(arguments)
    check(settings)
    return run_and_show(
        lambda: generate_catalog(**settings), as_json=arguments.json, log_format=arguments.log_format
    )


def _refresh(arguments: argparse.Namespace) -> int:
    from imagemill.cli.options import settings_of
    from imagemill.cli.running import check, run_and_show
    from imagemill.flows.refresh_catalog import refresh_catalog

    settings = _settings_of_run(arguments)
    settings |= {"refresh": settings_of(arguments, "refresh"), "prune": arguments.prune}
    check(settings)
    return run_and_show(
        lambda: refresh_catalog(**settings), as_json=arguments.json, log_format=arguments.log_format
    )


def _preview(arguments: argparse.Namespace) -> int:
    from imagemill.cli.running import check, preview_and_show
    from imagemill.errors import InputError
    from imagemill.flows.preview_catalog import preview_catalog

    settings = _settings_of_run(arguments)
    if not 1 <= arguments.images <= 200:
        raise InputError(f"--images {arguments.images} is not between 1 and 200.")
    check(settings)
    return preview_and_show(
        lambda: preview_catalog(**settings, images=arguments.images),
        as_json=arguments.json,
        log_format=arguments.log_format,
    )


def _settings_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    from imagemill.cli.options import RUN_GROUPS, settings_of
    from imagemill.cli.routes import apis_of
    from imagemill.errors import InputError

    if getattr(arguments, "output.uri") is None:
        raise InputError("Set where the images go: --output s3://BUCKET/PREFIX.")
    settings: dict[str, Any] = {group: settings_of(arguments, group) for group in RUN_GROUPS[1:]}
    settings["api"] = apis_of(arguments)
    return {"catalog": settings_of(arguments, "catalog", path=arguments.catalog), **settings}


def _estimate(arguments: argparse.Namespace) -> int:
    from imagemill.blocks.loading import image_api
    from imagemill.catalog.estimate import estimate
    from imagemill.cli.options import output_of, settings_of
    from imagemill.cli.routes import apis_of
    from imagemill.cli.terminal import show_estimate, warn

    given = apis_of(arguments)
    for api in given if isinstance(given, list) else [given]:
        warn(image_api(api, needs_key=False))
    found = estimate(
        settings_of(arguments, "catalog", path=arguments.catalog),
        given,
        settings_of(arguments, "picture"),
        settings_of(arguments, "limits"),
        output_of(arguments),
        settings_of(arguments, "quality"),
    )
    if arguments.json:
        print(found.model_dump_json())
    else:
        show_estimate(found)
    return DONE


def _resume(arguments: argparse.Namespace) -> int:
    from imagemill.cli.running import check, run_and_show
    from imagemill.flows.generate_catalog import generate_catalog
    from imagemill.flows.refresh_catalog import refresh_catalog

    settings = _recorded(arguments)
    check(settings)
    return run_and_show(
        lambda: refresh_catalog(**settings) if "refresh" in settings else generate_catalog(**settings),
        as_json=arguments.json,
        log_format=arguments.log_format,
    )


def _retry_failed(arguments: argparse.Namespace) -> int:
    from imagemill.cli.running import check, run_and_show
    from imagemill.flows.retry_failed import retry_failed
    from imagemill.runs.folder import RunFolder
    from imagemill.runs.review_choices import read_choices

    settings = _recorded(arguments)
    choices = arguments.choices and read_choices(arguments.choices)
    if choices is not None:
        choices.check(arguments.run_id, RunFolder(arguments.run_id).plan)
    check(settings)
    return run_and_show(
        lambda: retry_failed(
            arguments.run_id,
            arguments.permanent,
            settings["output"],
            limits=settings["limits"],
            execution=settings["execution"],
            choices=choices,
            base_url=getattr(arguments, "api.base_url"),
            judge=getattr(arguments, "quality.judge"),
        ),
        as_json=arguments.json,
        log_format=arguments.log_format,
    )


def _recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run began with, with what the command line changes."""
    from imagemill.cli.options import output_of, settings_of
    from imagemill.cli.routes import changed_apis, limits_to_change
    from imagemill.cli.running import resumed_arguments

    named = [name for name in ("store", "scheduler") if getattr(arguments, f"execution.{name}") is not None]
    settings = resumed_arguments(
        arguments.run_id,
        output_of(arguments),
        getattr(arguments, "api.base_url"),
        getattr(arguments, "quality.judge"),
        named,
    )
    settings["api"] = changed_apis(arguments, settings["api"])
    for group, known in (
        ("limits", limits_to_change(arguments, settings["limits"])),
        ("execution", settings["execution"].model_dump()),
    ):
        settings[group] = settings_of(arguments, group, **known)
    return settings


def _runs(arguments: argparse.Namespace) -> int:
    from imagemill.cli.listing import show_runs

    return show_runs(arguments)


def _reconcile(arguments: argparse.Namespace) -> int:
    from imagemill.cli.reconcile import show_reconciliation

    return show_reconciliation(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from imagemill.cli.comparing import show_comparison

    return show_comparison(arguments)


def _review(arguments: argparse.Namespace) -> int:
    from imagemill.cli.reviewing import show_review

    return show_review(arguments)


def _forget(arguments: argparse.Namespace) -> int:
    from imagemill.cli.forgetting import forget_runs

    return forget_runs(arguments)


def _models(arguments: argparse.Namespace) -> int:
    from imagemill.cli.models import show_models

    return show_models(arguments)


def _dashboard(arguments: argparse.Namespace) -> int:
    from imagemill.cli.options import settings_of
    from imagemill.cli.running import draw_and_show
    from imagemill.errors import InputError

    if getattr(arguments, "output.uri") is None:
        raise InputError("Set where the images of the runs are: --output s3://BUCKET/PREFIX.")
    output, regressions = settings_of(arguments, "output"), settings_of(arguments, "regressions")
    return draw_and_show(output, regressions, as_json=arguments.json)


def _calibrate(arguments: argparse.Namespace) -> int:
    from imagemill.blocks.loading import image_api
    from imagemill.cli.options import settings_of
    from imagemill.cli.terminal import show_calibration
    from imagemill.flows.calibrate import calibrate
    from imagemill.runs.environment import refuse_environment

    refuse_environment()
    api, budget = settings_of(arguments, "api"), settings_of(arguments, "budget")
    image_api(api)
    found = calibrate(api, budget, arguments.plot)
    if arguments.json:
        print(found.model_dump_json())
    else:
        show_calibration(found)
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    from imagemill.cli.checking import show_check

    return show_check(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from imagemill.cli.demo import demo

    return demo(arguments.folder, images=arguments.images, as_json=arguments.json)


_FLOWS = frozenset({_run, _refresh, _preview, _resume, _retry_failed, _dashboard, _demo})
"""The commands that run a flow, for which Prefect needs a server."""
