"""The output of ``imagemill runs``: a table of runs, one run, and why its jobs failed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.text import Text

from imagemill.cli.exit_codes import DONE
from imagemill.cli.options import BUCKET_OPTIONS, given_options, settings_of
from imagemill.cli.terminal import (
    how_to_resume,
    say,
    show_failures,
    show_summary,
    stdout,
    suspects_in_words,
)
from imagemill.engine.job_log import spelled_out
from imagemill.errors import InputError
from imagemill.formatting import duration, money, seconds
from imagemill.runs.known_runs import (
    BucketRecords,
    JobStory,
    KnownRun,
    LocalRecords,
    RunRecords,
    failed_jobs,
    job_story,
    known_run,
    known_runs,
)
from imagemill.runs.summary import RunSummary

_STYLES = {"done": "green", "failures": "yellow", "stopped": "yellow", "unfinished": "red", "running": "cyan"}
_TITLES = ("RUN", "STATE", "WHEN (UTC)", "DONE", "FAILED", "LEFT", "COST", "API", "CATALOG")
_BY_IMPORTANCE = ("RUN", "STATE", "DONE", "FAILED", "LEFT", "COST", "CATALOG", "WHEN (UTC)", "API")
_NUMBERS = range(3, 7)
_MOST_SHOWN = 50


def show_runs(arguments: argparse.Namespace) -> int:
    """Run ``imagemill runs``; the exit code."""
    if getattr(arguments, "output.uri") is None:
        return _show(arguments, LocalRecords())
    from imagemill.bucket.access import (
        open_bucket,  # loads Prefect: the bucket's credentials may be a block's
    )

    bucket = open_bucket(settings_of(arguments, "output"))
    try:
        return _show(arguments, BucketRecords(bucket))
    finally:
        bucket.close()


def _show(arguments: argparse.Namespace, records: RunRecords) -> int:
    if arguments.run_id is None:
        if arguments.failed or arguments.id is not None:
            raise InputError("Name a run, as in: imagemill runs RUN_ID --failed.")
        runs = known_runs(records)
        if arguments.json:
            _print_json({"runs": [run.model_dump() for run in runs]})
        else:
            _show_table(runs)
        return DONE
    run, summary = known_run(records, arguments.run_id)
    if arguments.id is not None:
        story = job_story(records, run.run_id, arguments.id)
        if arguments.json:
            _print_json(story.model_dump())
        else:
            _show_story(story)
    elif arguments.failed:
        stories = failed_jobs(records, run.run_id)
        if arguments.json:
            _print_json({"run_id": run.run_id, "failed": [story.model_dump() for story in stories]})
        else:
            _show_failed(run, stories)
    elif arguments.json:
        _print_json({**run.model_dump(), "summary": summary and summary.model_dump()})
    else:
        _show_run(run, summary, given_options(arguments, BUCKET_OPTIONS))
    return DONE


def _show_run(run: KnownRun, summary: RunSummary | None, where: Sequence[str]) -> None:
    if summary is None:
        _show_table([run])
        if run.state == "unfinished":
            say(f"The run did not finish.{how_to_resume(run.run_id, again=where)}")
        return
    show_summary(summary)
    if summary.stopped:
        resume = how_to_resume(run.run_id, summary.stopped, where)
        say(f"Stopped: {spelled_out(summary.stopped)}{resume}")
    if summary.suspect:
        say(suspects_in_words(summary, where))
    if summary.failed:
        show_failures(summary, where, where)


def _print_json(document: object) -> None:
    print(json.dumps(document))


def _show_table(runs: Sequence[KnownRun]) -> None:
    if not runs:
        say("There are no runs.")
        return
    rows = [
        (
            run.run_id,
            run.state,
            (run.planned_at or "-")[:16].replace("T", " "),
            f"{run.done:,}",
            f"{run.failed:,}",
            "-" if run.pending is None else f"{run.pending:,}",
            "-" if run.cost_usd is None else money(run.cost_usd),
            spelled_out(run.provider or "-"),
            spelled_out(run.catalog or "-"),
        )
        for run in runs
    ]
    # Not rich's Table, which shortens ids in a narrow terminal: people copy them.
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)]
    shown = _fitting(widths)
    _print_row(_TITLES, widths, shown, "dim")
    for row in rows:
        _print_row(row, widths, shown, "")
    if hidden := [title for place, title in enumerate(_TITLES) if place not in shown]:
        say(f"A wider terminal or --json also shows {', '.join(hidden)}.")


def _fitting(widths: Sequence[int]) -> list[int]:
    """The columns that a terminal has room for, the most important ones first; anything else takes all."""
    if not stdout.is_terminal:
        return list(range(len(widths)))
    shown: list[int] = []
    for place in map(_TITLES.index, _BY_IMPORTANCE):
        if not shown or sum(widths[each] + 2 for each in [*shown, place]) - 2 <= stdout.width:
            shown.append(place)
    return sorted(shown)


def _print_row(cells: Sequence[str], widths: Sequence[int], shown: Sequence[int], style: str) -> None:
    line = Text(style=style)
    for place in shown:
        cell, width = cells[place], widths[place]
        padded = cell.rjust(width) if place in _NUMBERS else cell.ljust(width)
        line.append(padded + "  ", style=_STYLES.get(cell, "") if place == 1 else "")
    line.rstrip()
    stdout.print(line, soft_wrap=True)


def _show_failed(run: KnownRun, stories: Sequence[JobStory]) -> None:
    if not stories:
        say(f"No job of run {run.run_id} failed.")
    for story in stories[:_MOST_SHOWN]:
        _show_story(story)
    if len(stories) > _MOST_SHOWN:
        say(f"And {len(stories) - _MOST_SHOWN:,} more: --json lists all of them, --id ID shows one.")


def _show_story(story: JobStory) -> None:
    stdout.print(Text(f"{spelled_out(story.id)}: {story.status}", style="bold"), soft_wrap=True)
    if story.prompt:
        say(f"  prompt    {spelled_out(story.prompt[:200])}")
    if story.error_class:
        named = story.error_code not in {None, story.error_class}
        code = f", code {spelled_out(story.error_code or '')}" if named else ""
        outcome = "may succeed later" if story.retryable else "would fail again"
        say(f"  error     {story.error_class}{code}, {outcome}")
    if story.message:
        say(f"  {'reason  ' if story.status == 'rejected' else 'message '}  {spelled_out(story.message)}")
    if story.attempts:
        more = f", {seconds(story.latency_s)}" if story.latency_s is not None else ""
        more += f", request {spelled_out(story.request_id)}" if story.request_id else ""
        say(f"  attempts  {story.attempts}{more}")
    for attempt in story.history:
        after = "" if attempt.retry_in_s is None else f", retried after {duration(attempt.retry_in_s)}"
        words = f': "{spelled_out(attempt.message[:300])}"' if attempt.message else ""
        say(f"    {attempt.at[11:23]}  {attempt.attempt}. {attempt.error_class}{words}{after}")
    if story.image:
        say(f"  image     {story.image}")
