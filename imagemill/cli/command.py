"""The command ``imagemill``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from imagemill.cli.exit_codes import DONE, STOPPED, UNUSABLE
from imagemill.cli.memory import collect, few_collections, keep_little
from imagemill.cli.parser import parser
from imagemill.cli.streams import Streams


def process() -> int:
    """Run the command as a process of its own; its exit code."""
    streams = Streams()
    with few_collections():
        try:
            code = main()
        except SystemExit as end:  # from the parser
            code = int(end.code or DONE)
        return streams.end(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["emulator"]:
        # The emulator is a separate program that nothing here imports: replace this process by it.
        os.execv(sys.executable, [sys.executable, "-m", "imagemill.emulator", *given[1:]])  # noqa: S606
    keep_little()
    _prepare_prefect()
    made = parser(given)
    chosen, unknown = made.parse_known_args(given)
    if unknown:
        made.prog += f" {chosen.command}"  # whose --help lists its options
        made.error(f"unrecognized arguments: {' '.join(unknown)}")
    from imagemill.cli.terminal import complain
    from imagemill.errors import InputError, StoreUnavailableError
    from imagemill.secrets import without_secrets

    run = _COMMANDS[chosen.command]
    try:
        _let_signals_interrupt()
        if chosen.command not in _FLOWS or getattr(chosen, "dry_run", False):
            collect()
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
    except KeyboardInterrupt as interrupt:
        complain(
            str(interrupt)
            or _INTERRUPTED.get(chosen.command, "Interrupted before anything was sent to the API.")
        )
        return STOPPED
    except Exception as error:
        if (shown := without_secrets(error)) is not error:
            raise shown from None
        raise


def _let_signals_interrupt() -> None:
    """Raise KeyboardInterrupt at Ctrl-C and SIGHUP, unless they are ignored, as under nohup."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # imagemill.__main__
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _hang_up)


def _hang_up(number: int, _frame: FrameType | None) -> None:
    """Interrupt the command only once: shell and kernel both send this signal."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


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
    from imagemill.cli.options import BUCKET_OPTIONS, given_options
    from imagemill.cli.running import check, run_and_show
    from imagemill.flows.generate_catalog import generate_catalog
    from imagemill.flows.refresh_catalog import refresh_catalog

    settings = _recorded(arguments)
    check(settings)
    return run_and_show(
        lambda: refresh_catalog(**settings) if "refresh" in settings else generate_catalog(**settings),
        as_json=arguments.json,
        log_format=arguments.log_format,
        where=given_options(arguments, BUCKET_OPTIONS),
        again=given_options(arguments),
    )


def _retry_failed(arguments: argparse.Namespace) -> int:
    from imagemill.cli.options import BUCKET_OPTIONS, given_options
    from imagemill.cli.running import check, run_and_show, say_what_is_left
    from imagemill.flows.retry_failed import retry_failed
    from imagemill.runs.folder import RunFolder
    from imagemill.runs.review_choices import read_choices

    settings = _recorded(arguments)
    choices = arguments.choices and read_choices(arguments.choices)
    if choices is not None:
        choices.check(arguments.run_id, RunFolder(arguments.run_id).plan)
    check(settings)
    if choices is None:
        say_what_is_left(arguments.run_id, permanent=arguments.permanent)
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
            api=settings["api"],
        ),
        as_json=arguments.json,
        log_format=arguments.log_format,
        where=given_options(arguments, BUCKET_OPTIONS),
        again=given_options(arguments),
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


_FLOWS = ("run", "refresh", "preview", "resume", "retry-failed", "dashboard", "demo")
"""The commands that run a flow, for which Prefect needs a server."""

_INTERRUPTED = {
    "calibrate": "Interrupted: no limit was stored. Images that were asked for may be charged.",
    "check": "Interrupted. If --image had asked for its image, that may be charged.",
}
"""What to say of commands that send requests, and are no runs."""

_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "refresh": _refresh,
    "estimate": _estimate,
    "preview": _preview,
    "resume": _resume,
    "retry-failed": _retry_failed,
    "calibrate": _calibrate,
    "check": _check,
    "demo": _demo,
    "dashboard": _dashboard,
    "runs": _runs,
    "reconcile": _reconcile,
    "review": _review,
    "compare": _compare,
    "forget": _forget,
    "models": _models,
}
