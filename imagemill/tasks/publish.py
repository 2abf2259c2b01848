"""Publishes a run: its records, then the manifest."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from imagemill.bucket.manifest import MANIFEST, replace_manifest, write_manifest
from imagemill.bucket.manifest_diff import Changes
from imagemill.runs.records import copy_images, publish_records, write_records
from imagemill.runs.session import Session


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(session: Session, *, retire: bool = False, prune: bool = False) -> Changes:
    """Write all records of a run to the bucket, the manifest last; what changed in the manifest.

    With ``retire``, rows that the manifest has and the catalog has no more stay in it as retired; with
    ``prune`` their images are deleted, unless another row uses them.

    Raises:
        StoreUnavailableError: the bucket is away, or other runs keep replacing the manifest.
    """
    outcomes = write_records(session)
    publish_records(session)
    copies = session.settings.output.copies
    if copies:
        copy_images(session, outcomes)
    manifest = session.folder.path / MANIFEST
    catalog = session.settings.catalog.path
    write_manifest(session.bucket, session.folder.plan, outcomes, manifest, catalog=catalog, copies=copies)
    if session.lease is not None:
        session.lease.check()
    return replace_manifest(session.bucket, manifest, retire=retire, prune=prune)
