"""``imagemill compare``: two runs side by side."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from rich.table import Table

from imagemill.bucket.access import open_bucket
from imagemill.cli.exit_codes import DONE
from imagemill.cli.options import output_of
from imagemill.cli.terminal import say, stdout
from imagemill.errors import InputError
from imagemill.reports.comparison import (
    ComparedRun,
    Comparison,
    metric_rows,
    publish_comparison,
)
from imagemill.runs.folder import RunFolder
from imagemill.runs.recorded_settings import recorded_settings
from imagemill.settings import OutputSettings

MOST_PICTURES = 400


def show_comparison(arguments: argparse.Namespace) -> int:
    """Compare, store the page and print the metrics; the exit code."""
    if not 1 <= arguments.images <= MOST_PICTURES:
        raise InputError(f"--images {arguments.images} is not between 1 and {MOST_PICTURES}.")
    output = output_of(arguments)
    with ExitStack() as stack:
        runs = [_opened(stack, run_id, output) for run_id in (arguments.run_a, arguments.run_b)]
        found = publish_comparison(runs[0], runs[1], arguments.images)
    if arguments.json:
        print(found.model_dump_json())
    else:
        _show(found)
    return DONE


def _opened(stack: ExitStack, run_id: str, output: OutputSettings | None) -> ComparedRun:
    """A run, from this machine or from ``output``, with the bucket that it wrote to."""
    settings = recorded_settings(run_id, output)
    same = output is not None and output.uri == settings.output.uri
    bucket = open_bucket(output if output is not None and same else settings.output)
    stack.callback(bucket.close)
    return ComparedRun(settings, RunFolder(run_id), bucket)


def _show(found: Comparison) -> None:
    table = Table(pad_edge=False)
    table.add_column("")
    for name in (found.run_a.run_id, found.run_b.run_id, "change"):
        table.add_column(name, justify="right", overflow="fold")
    for metric in metric_rows(found.run_a, found.run_b):
        table.add_row(metric.name, metric.a, metric.b, metric.change)
    stdout.print(table)
    say(f"Both runs have {found.in_both:,} of the rows and variants; {found.same:,} share one image.")
    say(f"Comparison  {found.file}")
    say(f"            {found.page}")
