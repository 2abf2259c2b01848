"""The command ``imagemill forget``."""

from __future__ import annotations

import argparse
import json
import re
from datetime import timedelta

from imagemill.bucket.access import open_bucket
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.cli.exit_codes import DONE, UNUSABLE
from imagemill.cli.options import output_of
from imagemill.cli.terminal import complain, say
from imagemill.errors import InputError
from imagemill.formatting import counted
from imagemill.runs.folder import RunFolder
from imagemill.runs.forgetting import Forgettable, forget, forgettable

_AGE = re.compile(r"(\d{1,5})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def forget_runs(arguments: argparse.Namespace) -> int:
    """Run ``imagemill forget``; the exit code."""
    output = output_of(arguments)
    bucket = None if output is None else open_bucket(output)
    try:
        found = _found(arguments, bucket)
        is_meant = bool(arguments.run_ids) or arguments.yes
        forgotten = [each.run for each in found if each.kept is None]
        for run in forgotten:
            if is_meant:
                with RunFolder(run.run_id).writable():
                    forget(run, bucket)
            if not arguments.json:
                what = "forgotten" if is_meant else "would be forgotten"
                say(f"{what}: {run.run_id} ({(run.planned_at or '')[:10]})")
    finally:
        if bucket is not None:
            bucket.close()
    kept = {each.run.run_id: each.kept for each in found if each.kept is not None}
    if arguments.json:
        ids = [run.run_id for run in forgotten]
        print(json.dumps({"forgotten": ids if is_meant else [], "found": ids, "kept": kept}))
        return UNUSABLE if arguments.run_ids and kept else DONE
    if not found:
        say(f"No run is older than {arguments.older_than}.")
    for run_id, why in kept.items():
        complain(f"Run {run_id} is kept: {why}.")
    if forgotten and not is_meant:
        say(f"Nothing was deleted. Add --yes to forget {counted(len(forgotten), 'run', 'runs')}.")
    return UNUSABLE if arguments.run_ids and kept else DONE


def _found(arguments: argparse.Namespace, bucket: ImageBucket | None) -> list[Forgettable]:
    wanted: list[str] = arguments.run_ids
    if bool(wanted) == (arguments.older_than is not None):
        raise InputError("Name either the runs to forget or their age, as in: --older-than 90d.")
    older_than = _age(arguments.older_than)
    found = forgettable(bucket, run_ids=wanted, older_than=older_than, unfinished=arguments.unfinished)
    if missing := set(wanted) - {each.run.run_id for each in found}:
        raise InputError(f"There is no run {min(missing)!r} here. 'imagemill runs' lists the runs there are.")
    return found


def _age(text: str | None) -> timedelta | None:
    if text is None:
        return None
    found = _AGE.fullmatch(text)
    if found is None:
        raise InputError(f"--older-than {text!r} is not an age: use hours, days or weeks, as in 12h or 90d.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
