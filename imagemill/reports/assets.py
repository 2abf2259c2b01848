"""What a run leaves in the bucket, as Prefect assets: for lineage, and events that automations act on.

Their keys are addresses that stay the same from run to run, so that an asset has a history: the manifest, the
folder of all runs' metrics, and the folder of their records with the report. What is the run's own is in the
payload of the event.
"""

from __future__ import annotations

from contextlib import suppress

from prefect.assets import Asset, AssetProperties, add_asset_metadata
from pydantic import ValidationError

from imagemill.bucket.manifest import MANIFEST

METRICS, RECORDS = "metrics", "runs"

NAMED_BY_RUN = "s3://output"
"""Stands for the assets of a task until a run names its own with ``with_options``."""

_DESCRIPTIONS = {
    MANIFEST: "The catalog as it stands: each row and the address of its image.",
    METRICS: "One row per run: throughput, errors, latency and cost.",
    RECORDS: "The records of each run, with its report.",
}


def assets_of(output: str, *names: str) -> list[Asset]:
    """The assets of these names below an output's address; none where Prefect cannot have it as a key."""
    found = []
    for name in names:
        properties = AssetProperties(name=f"{name} of {output}", description=_DESCRIPTIONS[name])
        with suppress(ValidationError):  # spaces and some signs may be in an address, but not in a key
            found.append(Asset(key=f"{output}/{name}", properties=properties))
    return found


def sources_of(catalog: str) -> list[Asset | str]:
    """The asset that a catalog on S3 is; one on this machine, or several files, have no key of their own."""
    if not catalog.startswith("s3://") or "*" in catalog:
        return []
    with suppress(ValidationError):
        return [Asset(key=catalog)]
    return []


def describe(output: str, name: str, **payload: object) -> None:
    """Put this into the event of an asset of the running task, if the task makes it."""
    with suppress(RuntimeError, ValueError):
        add_asset_metadata(f"{output}/{name}", payload)
