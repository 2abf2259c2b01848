"""Runs a flow from the command line: checks, then Prefect, progress while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from imagemill.blocks.loading import image_api
from imagemill.bucket.access import open_bucket
from imagemill.catalog.access import catalog_of
from imagemill.cli.exit_codes import DONE, FAILURES, STOPPED
from imagemill.cli.interrupts import InterruptedCaller
from imagemill.cli.memory import collect
from imagemill.cli.prefect_server import wait_for_server
from imagemill.cli.spared_imports import spare_pandas
from imagemill.cli.terminal import (
    complain,
    how_to_resume,
    job_lines_shown,
    progress_shown,
    say,
    show_dashboard,
    show_failures,
    show_preview,
    show_summary,
    suspects_in_words,
    warn,
)
from imagemill.cluster.dask import check_cluster
from imagemill.engine.limits.pacer import Pacer
from imagemill.errors import InputError
from imagemill.flows.build_dashboard import build_dashboard
from imagemill.formatting import counted
from imagemill.prefect_address import lasting_server
from imagemill.quality.named_judge import named_judge
from imagemill.reports.dashboard import DashboardSummary
from imagemill.reports.preview import Preview
from imagemill.runs.accounts import named_routes, refuse_given_up
from imagemill.runs.caller import called_by
from imagemill.runs.environment import refuse_environment
from imagemill.runs.folder import RunFolder
from imagemill.runs.known_runs import LocalRecords, failed_jobs, known_run
from imagemill.runs.recorded_settings import settings_to_go_on
from imagemill.runs.summary import RunStoppedError, RunSummary
from imagemill.settings import OutputSettings, RegressionSettings

R = TypeVar("R", RunSummary, Preview)


def run_and_show(
    flow: Callable[[], RunSummary],
    *,
    as_json: bool,
    log_format: str | None = None,
    where: Sequence[str] = (),
    again: Sequence[str] = (),
) -> int:
    """Run a flow that ends in a summary; print it; the exit code.

    ``where`` has the options of the bucket that further commands need, too; ``again`` all that those need
    which go on with the run.
    """
    outcome = run(flow, log_format, again)
    if isinstance(outcome, RunStoppedError):
        return _stopped(outcome.summary, as_json=as_json, again=again)
    summary = outcome
    if as_json:
        print(summary.model_dump_json())
    else:
        show_summary(summary)
    if not as_json:
        if not summary.rows:
            say("The catalog has no rows.")
        if summary.rejected:
            say(summary.rejections_in_words)
        if summary.suspect:
            say(suspects_in_words(summary, where))
        if summary.failed:
            show_failures(summary, where, again)
    if summary.failed or (summary.rejected and not summary.unique):
        return FAILURES
    return DONE


def _stopped(summary: RunSummary, *, as_json: bool, again: Sequence[str] = ()) -> int:
    if as_json:
        print(summary.model_dump_json())
    else:
        show_summary(summary)
    complain(
        f"{summary.stopped} {summary.done:,} of {summary.unique:,} images are done and kept,"
        f" {summary.pending:,} are pending{summary.unanswered_in_words}."
        f"{how_to_resume(summary.run_id, summary.stopped, again)}"
    )
    return STOPPED


def preview_and_show(flow: Callable[[], Preview], *, as_json: bool, log_format: str | None = None) -> int:
    """Run ``preview_catalog`` and print what it found; the exit code."""
    found = run(flow, log_format)
    if isinstance(found, RunStoppedError):
        return _stopped(found.summary, as_json=as_json)
    if as_json:
        print(found.model_dump_json())
    else:
        show_preview(found)
    return FAILURES if found.failed or (found.rejected and not found.unique) else DONE


def run(
    flow: Callable[[], R], log_format: str | None = None, again: Sequence[str] = ()
) -> R | RunStoppedError:
    """Run a flow with its progress, or one line per job, on stderr. A stop is returned, not raised."""
    showing = job_lines_shown(log_format) if log_format else progress_shown()
    with showing as show, called_by(caller := InterruptedCaller(show, again)), caller.signals():
        wait_for_server()
        collect()
        try:
            # Prefect's heartbeat costs every run a second at its end, and someone watches this run anyway.
            with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                return flow()
        except RunStoppedError as stop:
            return stop


def draw_and_show(output: OutputSettings, regressions: RegressionSettings, *, as_json: bool) -> int:
    """Run ``build_dashboard`` and print its result; the exit code."""
    refuse_environment()
    open_bucket(output).close()
    wait_for_server()
    collect()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        summary: DashboardSummary = build_dashboard(output=output, regressions=regressions)
    if as_json:
        print(summary.model_dump_json())
    else:
        show_dashboard(summary)
        if lasting_server() is None and any(each.latest for each in summary.regressions):
            complain("Nobody was alerted: set PREFECT_API_URL to a server that has automations.")
    return DONE


def check(settings: dict[str, Any]) -> None:
    """Check the settings before anything is started.

    Raises:
        InputError: something cannot be used.
    """
    refuse_environment()
    quality = settings["quality"]
    if quality.judge is None or quality.judge_is_model:
        spare_pandas()
    named_judge(quality, settings["limits"], Pacer(1))
    run_id = settings["execution"].run_id
    if run_id is None or RunFolder(run_id).read_record() is None:
        for note in catalog_of(settings["catalog"], settings["output"]).usage.notes:
            complain(note)
    given_up = settings["execution"].give_up
    if isinstance(settings["api"], list):
        routes, apis = named_routes(settings["api"])
        refuse_given_up(routes, given_up)
        for api in apis:
            warn(api)
    else:
        refuse_given_up([], given_up)
        warn(image_api(settings["api"]))
    open_bucket(settings["output"]).close()
    check_cluster(settings["execution"])


def say_what_is_left(run_id: str, *, permanent: bool) -> None:
    """Say it if no failed job of a run is to be retried, and what is done instead."""
    try:
        failed = failed_jobs(LocalRecords(), run_id)
        pending = known_run(LocalRecords(), run_id)[0].pending
    except InputError:  # a damaged file, which the run itself does not read
        return
    going_on = f"this goes on with the {pending:,} that are pending" if pending else ""
    if not failed:
        complain(f"No image of run {run_id} has failed: {going_on or 'there is nothing to retry'}.")
    elif not permanent and not any(story.retryable for story in failed):
        images = counted(len(failed), "failed image", "failed images")
        complain(
            f"The {images} of run {run_id} would fail again with the same input: only --permanent retries"
            f" them{going_on and f'; {going_on}'}."
        )


def resumed_arguments(
    run_id: str,
    output: OutputSettings | None = None,
    base_url: str | None = None,
    judge: str | None = None,
    named: Collection[str] = (),
) -> dict[str, Any]:
    """The arguments that a run began with, from its folder on this machine or its records in ``output``.

    The caller replaces the ``named`` settings of how it is executed.

    Raises:
        InputError: there is no such run.
    """
    settings = settings_to_go_on(run_id, output, base_url=base_url, judge=judge, named=named)
    refresh = {} if settings.refresh is None else {"refresh": settings.refresh, "prune": settings.prune}
    return {
        **refresh,
        "catalog": settings.catalog,
        "output": settings.output,
        "api": settings.apis,
        "picture": settings.picture,
        "limits": settings.limits,
        "quality": settings.quality,
        "execution": settings.execution.model_copy(update={"run_id": run_id, "keep_plan": True}),
    }
