"""``imagemill review``: a page of a run's suspect pictures."""

from __future__ import annotations

import argparse

from imagemill.bucket.access import open_bucket
from imagemill.cli.exit_codes import DONE
from imagemill.cli.options import output_of
from imagemill.cli.terminal import say
from imagemill.reports.review import publish_review
from imagemill.runs.folder import RunFolder
from imagemill.runs.recorded_settings import recorded_settings


def show_review(arguments: argparse.Namespace) -> int:
    """Run ``imagemill review``; the exit code."""
    output = output_of(arguments)
    settings = recorded_settings(arguments.run_id, output)
    bucket = open_bucket(output or settings.output)
    folder = RunFolder(arguments.run_id)
    try:
        with folder.writable():
            review = publish_review(bucket, folder)
    finally:
        bucket.close()
    if arguments.json:
        print(review.model_dump_json())
    elif review.page is None:
        say(f"Run {review.run_id} has no suspect picture to decide on.")
    else:
        more = f", {review.shown:,} of them on this page" if review.shown < review.suspect else ""
        say(f"{review.suspect:,} suspect {'picture' if review.suspect == 1 else 'pictures'}{more}.")
        say(f"Review    {review.file}")
        say(f"          {review.page}")
    return DONE
