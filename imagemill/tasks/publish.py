"""Publishes a run: its records, then the manifest."""

from __future__ import annotations

from dataclasses import asdict

from prefect.assets import materialize
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest import MANIFEST, Publisher, write_manifest
from imagemill.bucket.manifest_diff import Changes
from imagemill.bucket.manifest_guard import NewerRun
from imagemill.bucket.replacement import Missing, Prune, replace_manifest
from imagemill.catalog.counts import PlanCounts
from imagemill.reports.assets import NAMED_BY_RUN, describe
from imagemill.runs.planning import is_part
from imagemill.runs.records import copy_images, delete_rejected_copies, published_records
from imagemill.runs.session import Session
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.settings import RunSettings


@materialize(
    NAMED_BY_RUN,
    by="imagemill",
    name="publish",
    task_run_name="publish",
    cache_policy=NO_CACHE,
    persist_result=False,
)
@without_secrets_in_errors
def publish(session: Session, counts: PlanCounts, *, newer: NewerRun | None = None) -> Changes:
    """Write all records of a run to the bucket, the manifest last; what changed in the manifest.

    A run of a part of the catalog merges its rows into the manifest, a refresh retires the rows that have
    left the catalog, and any other run replaces the manifest. A catalog without a usable row replaces none,
    nor does a run than which a ``newer`` one has published the manifest.

    Raises:
        StoreUnavailableError: the bucket is away, or other runs keep replacing the manifest.
    """
    manifest = session.folder.path / MANIFEST
    catalog, copies = session.settings.catalog.path, session.settings.output.copies
    with published_records(session) as outcomes:
        if newer is None:
            if copies:
                copy_images(session, outcomes)
            write_manifest(
                session.bucket,
                session.folder.plan,
                outcomes,
                manifest,
                catalog=catalog,
                copies=copies,
                publisher=Publisher(session.settings.run_id, session.folder.read_planned_at()),
                columns=counts.columns.get("used", {}),
                makers=session.makers,
            )
    if newer is not None:
        return Changes(0, 0, 0, 0)
    if session.lease is not None:
        session.lease.check()
    if not replaces_manifest(session, counts, newer=newer):
        return Changes(0, 0, 0, 0)
    changes = replace_manifest(
        session.bucket, manifest, missing=_missing(session.settings, counts), prune=_prune(session)
    )
    if copies:
        delete_rejected_copies(session, outcomes)
    describe(session.bucket.uri, MANIFEST, run_id=session.settings.run_id, catalog=catalog, **asdict(changes))
    return changes


def replaces_manifest(session: Session, counts: PlanCounts, *, newer: NewerRun | None) -> bool:
    """Whether the run publishes its manifest: not over a newer one, or unasked over one that has images."""
    settings = session.settings
    if newer is not None:
        return False
    if counts.unique or settings.output.replace_manifest or settings.refresh is not None:
        return True
    with session.bucket.open(MANIFEST) as file:
        return file is None


def _missing(settings: RunSettings, counts: PlanCounts) -> Missing:
    if is_part(settings, counts) and not settings.output.replace_manifest:
        return Missing.KEEP
    return Missing.DROP if settings.refresh is None else Missing.RETIRE


def _prune(session: Session) -> Prune | None:
    """How to prune; not after a run that stopped early, whose rows have no images yet."""
    settings = session.settings
    if not settings.prune or settings.refresh is None or session.engine.stopped:
        return None
    return Prune(settings.refresh.prune_after_days, f"runs/{settings.run_id}/prune.parquet")
