"""Forgets runs: deletes their folders on this machine and in the bucket, but no picture and no history.

Pictures, the manifest and the row in ``metrics/`` stay, so that nothing is paid for again and dashboards
keep their past. Nothing else needs the records of a finished run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import holder_of
from imagemill.runs.folder import RunFolder, home
from imagemill.runs.known_runs import BucketRecords, KnownRun, LocalRecords, known_runs

_FINISHED = frozenset({"done", "failures"})
_LAST = ("summary.json", "run.json")
"""Deleted last: a run that was forgotten in part is still listed, as finished."""


@dataclass(frozen=True, slots=True)
class Forgettable:
    """A run, and why it is kept; None if it can be forgotten."""

    run: KnownRun
    kept: str | None


def forgettable(
    bucket: ImageBucket | None,
    *,
    run_ids: Iterable[str] = (),
    older_than: timedelta | None = None,
    unfinished: bool = False,
) -> list[Forgettable]:
    """The runs of a bucket, or of this machine, that have these ids or are that old; oldest first.

    Args:
        bucket: where the records are; None for this machine's.
        run_ids: the runs to find.
        older_than: also find all runs that were planned so long ago.
        unfinished: whether runs that stopped or were killed can be forgotten, too.
    """
    records = LocalRecords() if bucket is None else BucketRecords(bucket)
    here = {run.run_id: run for run in known_runs(LocalRecords())}
    working = None if bucket is None else holder_of(bucket)
    wanted, found = set(run_ids), list[Forgettable]()
    before = None if older_than is None else datetime.now(UTC) - older_than
    for run in reversed(known_runs(records)):
        if run.run_id in wanted or (before is not None and _was_planned(run, before)):
            is_here = _is_same(here.get(run.run_id), run)
            states = {run.state, here[run.run_id].state} if is_here else {run.state}
            kept = None
            if "running" in states or run.run_id == working:
                kept = "it is in progress; stop it first"
            elif is_here and RunFolder(run.run_id).unsaved_images:
                kept = "images that are paid for have not been uploaded; imagemill resume uploads them"
            elif not states <= _FINISHED and not unfinished:
                kept = "it can still be resumed; --unfinished forgets it all the same"
            found.append(Forgettable(run, kept))
    return found


def forget(run: KnownRun, bucket: ImageBucket | None) -> None:
    """Delete a run's folder in the bucket, if one is given, and this machine's folder of the same run.

    Raises:
        StoreUnavailableError: the bucket is unavailable, or did not delete an object; says which.
    """
    if bucket is not None:
        names = {found.name for found in bucket.objects(f"runs/{run.run_id}")}
        last = [name for name in (f"runs/{run.run_id}/{file}" for file in _LAST) if name in names]
        bucket.delete(sorted(names.difference(last)))
        for name in last:
            bucket.delete([name])
    here = {known.run_id: known for known in known_runs(LocalRecords())}
    if _is_same(here.get(run.run_id), run):
        gone = home() / f"forgotten-{run.run_id}"
        shutil.rmtree(gone, ignore_errors=True)  # what an interrupt left
        RunFolder(run.run_id).path.rename(gone)
        shutil.rmtree(gone)


def _is_same(here: KnownRun | None, run: KnownRun) -> bool:
    """Whether this machine's run of that id is the same: ids are an output's own."""
    return here is not None and here.output == run.output and here.planned_at == run.planned_at


def _was_planned(run: KnownRun, before: datetime) -> bool:
    try:
        return run.planned_at is not None and datetime.fromisoformat(run.planned_at) < before
    except ValueError:
        return False
