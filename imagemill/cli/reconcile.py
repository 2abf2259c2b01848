"""``imagemill reconcile``: a run compared with the vendor's bill."""

from __future__ import annotations

import argparse

from rich.table import Table

from imagemill.bucket.access import open_bucket
from imagemill.cli.exit_codes import DONE, FAILURES
from imagemill.cli.options import output_of, pairs_of
from imagemill.cli.terminal import say, stdout
from imagemill.errors import InputError
from imagemill.formatting import money
from imagemill.reports.reconciliation import add_to_report
from imagemill.runs.folder import RunFolder
from imagemill.runs.reconciliation import (
    Reconciliation,
    reason_in_words,
    reconcile,
    settings_of_route,
)
from imagemill.runs.recorded_settings import recorded_settings, refuse_unnamed_address


def show_reconciliation(arguments: argparse.Namespace) -> int:
    """Compare, store and print; the exit code says whether booked and charged agree."""
    output = output_of(arguments)
    settings = recorded_settings(arguments.run_id, output)
    if arguments.route is not None:
        settings = settings_of_route(settings, arguments.route)
    elif settings.routes and arguments.base_url is not None:
        raise InputError("The run has several routes: name the one that --base-url is for, by --route NAME.")
    if arguments.export is None:  # the vendor is asked, with the admin key
        refuse_unnamed_address(settings, arguments.base_url)
    bucket = open_bucket(output or settings.output)
    try:
        with RunFolder(arguments.run_id).writable():
            found = reconcile(
                settings,
                bucket,
                arguments.export,
                pairs_of("--column", "NAME=COLUMN", arguments.column or []),
                base_url=arguments.base_url,
                route=arguments.route,
            )
            report = add_to_report(bucket, found)
    finally:
        bucket.close()
    if arguments.json:
        print(found.model_dump_json())
    else:
        _show(found, report)
    return DONE if found.agrees else FAILURES


def _show(found: Reconciliation, report: str | None) -> None:
    table = Table(title=f"Run {found.run_id} and {found.source}", title_justify="left", pad_edge=False)
    table.add_column("")
    for column in ("requests", "booked", "charged", "difference"):
        table.add_column(column, justify="right")
    for name, total in found.reasons.items():
        amounts = (total.booked_usd, total.charged_usd, total.difference_usd)
        table.add_row(reason_in_words(name)[0], f"{total.requests:,}", *map(money, amounts))
    stdout.print(table)
    say(found.in_words)
    say(f"By request  {found.file}")
    if report:
        say(f"Report      {report}")
