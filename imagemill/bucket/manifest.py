"""The manifest: the current catalog, with the outcome of every row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ImageBucket, copy_name, image_name
from imagemill.catalog.plan import PLAN_SCHEMA
from imagemill.jobs import Job, JobStatus
from imagemill.parquet import read_batches
from imagemill.takes import seed_of, take_of

MANIFEST = "manifest.parquet"

OWN_COLUMNS = (
    "id", "prompt", "negative_prompt", "width", "height", "seed", "steps",
    "key", "status", "uri", "copy_uri", "error_code", "variant",
)  # fmt: skip
"""The columns of a manifest that are imagemill's; the others are the catalog's."""

MADE_BY = "made_by"
"""The column with vendor and model, in the manifest of a run over several routes."""

CATALOG_METADATA = b"imagemill.catalog"
"""The key of the catalog's path in the metadata of the manifest's schema."""

_PUBLISHER_METADATA = b"imagemill.published_by"
"""That of the run that published the manifest last, and when that run was planned, as JSON."""

_COLUMNS_METADATA = b"imagemill.columns"
"""That of the catalog's columns that were used, by imagemill's names, as JSON."""


class Publisher(NamedTuple):
    """A run that publishes a manifest. ``planned_at`` is in ISO format, in UTC; "" if it is not known."""

    run_id: str
    planned_at: str


_Ending = tuple[str, str | None, str | None, int]
"""Status, error code, the extension of the image, and which take it is."""


class Outcomes:
    """The outcome of each job, by number; a million jobs take 4 MB."""

    def __init__(self) -> None:
        self._endings: dict[_Ending, int] = {("rejected", None, None, 1): 0}
        self._of_job = array("i")
        self._routes: dict[str, int] = {"": 0}
        self._route_of_job = array("B")

    def add(self, jobs: Iterable[Job]) -> None:
        """Add the next jobs, in order of their numbers."""
        endings = self._endings
        for job in jobs:
            status = JobStatus.PENDING if job.status is JobStatus.RUNNING else job.status
            image = job.image if job.image is not None and job.has_picture else ""
            extension, take = image.rpartition(".")[2] or None, take_of(image)
            self._of_job.append(endings.setdefault((status, job.error_code, extension, take), len(endings)))
            made_by = job.route if image else ""
            self._route_of_job.append(self._routes.setdefault(made_by, len(self._routes)))

    def routes_of(self, jobs: pa.Array | pa.ChunkedArray) -> list[str]:
        """The routes that made these jobs' pictures; "" where it is not known, or there is none."""
        names = list(self._routes)
        return [names[self._route_of_job[job]] if job is not None else "" for job in jobs.to_pylist()]

    def of(
        self, jobs: pa.Array | pa.ChunkedArray
    ) -> tuple[list[str], list[str | None], list[str | None], list[int]]:
        """Status, error code, extension and take of the images of these jobs; null is a rejected row."""
        numbers = jobs.fill_null(-1).to_numpy()
        rejected = numbers < 0
        if rejected.all():
            chosen = np.zeros(len(numbers), np.intc)
        else:
            chosen = np.where(rejected, 0, np.frombuffer(self._of_job, np.intc)[numbers])
        endings = list(self._endings)
        statuses, error_codes, extensions, takes = zip(*endings, strict=True)
        places = chosen.tolist()
        return (
            [statuses[place] for place in places],
            [error_codes[place] for place in places],
            [extensions[place] for place in places],
            [takes[place] for place in places],
        )


def write_manifest(
    bucket: ImageBucket,
    plan: Path,
    outcomes: Outcomes,
    file: Path,
    *,
    catalog: str,
    copies: bool,
    publisher: Publisher,
    columns: Mapping[str, str] = MappingProxyType({}),
    makers: Mapping[str, str] | None = None,
) -> None:
    """Write the catalog as it stands: one row per catalog row, with the outcome of its job.

    Args:
        bucket: where the images are.
        plan: the run's plan.parquet.
        outcomes: those of all jobs.
        file: the manifest to write.
        catalog: the path of the catalog, which the manifest keeps in its schema's metadata.
        copies: whether each row has its own copy of its image.
        publisher: the run.
        columns: the catalog's columns that were used, by imagemill's names; kept like its path.
        makers: of a run over several routes, the vendor and model of each: a column says who made a picture.
    """
    schema = pq.read_schema(plan)
    own = OWN_COLUMNS if makers is None else (*OWN_COLUMNS, MADE_BY)
    before = None if makers is None else _made_before(bucket)
    carried = [f for f in schema if f.name not in PLAN_SCHEMA.names]
    taken = {*own, *[field.name.removeprefix("carried:") for field in carried]}
    names: dict[str, str] = {}
    for field in carried:
        name = field.name.removeprefix("carried:")
        while name in own or (name != field.name.removeprefix("carried:") and name in taken):
            name = f"catalog_{name}"
        names[field.name] = name
        taken.add(name)
    known_by = {
        CATALOG_METADATA: catalog.encode("utf-8", "replace"),
        _COLUMNS_METADATA: json.dumps(dict(columns)).encode(),
        _PUBLISHER_METADATA: json.dumps(publisher).encode(),
    }
    writer: pq.ParquetWriter | None = None
    try:
        for batch in read_batches(plan):
            planned = pa.Table.from_batches([batch])
            table = _manifest_table(bucket, planned, outcomes, copies=copies)
            if makers is not None:
                table = table.append_column(MADE_BY, _made_by(planned, outcomes, makers, before))
            for field in carried:
                table = table.append_column(pa.field(names[field.name], field.type), planned[field.name])
            writer = writer or pq.ParquetWriter(
                file, table.schema.with_metadata(known_by), compression="zstd"
            )
            writer.write_table(table)
        if writer is None:
            empty = schema.empty_table()
            table = _manifest_table(bucket, empty, outcomes, copies=copies)
            if makers is not None:
                table = table.append_column(MADE_BY, pa.array([], pa.string()))
            writer = pq.ParquetWriter(file, table.schema.with_metadata(known_by))
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _made_before(bucket: ImageBucket) -> pa.Table | None:
    """Keys and makers in the manifest as it stands; None where it names no makers."""
    with bucket.open(MANIFEST) as file:
        if file is None or MADE_BY not in pq.read_schema(file).names:
            return None
        file.seek(0)
        return pq.read_table(file, columns=["key", MADE_BY]).combine_chunks()


def _made_by(
    planned: pa.Table, outcomes: Outcomes, makers: Mapping[str, str], before: pa.Table | None
) -> pa.Array:
    """Who made each row's picture: in this run, or as the manifest says where it was there before."""
    names = [makers.get(route) for route in outcomes.routes_of(planned["job"])]
    made = pa.array(names, pa.string())
    if before is None or not made.null_count or not before.num_rows:
        return made
    known = before[MADE_BY].take(pc.index_in(planned["key"], value_set=before["key"].combine_chunks()))
    return pc.coalesce(made, known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known)


def published_by(schema: pa.Schema) -> Publisher | None:
    """The run that published a manifest last; None in a manifest of an earlier version."""
    try:
        run_id, planned_at = json.loads((schema.metadata or {}).get(_PUBLISHER_METADATA, b""))
        return Publisher(str(run_id), str(planned_at))
    except (ValueError, TypeError):
        return None


def used_columns(schema: pa.Schema) -> Mapping[str, str]:
    """The catalog's columns that a manifest's run used, by imagemill's names; of an earlier version none."""
    try:
        return dict(json.loads((schema.metadata or {}).get(_COLUMNS_METADATA, b"{}")))
    except (ValueError, TypeError):
        return {}


def _manifest_table(bucket: ImageBucket, planned: pa.Table, outcomes: Outcomes, *, copies: bool) -> pa.Table:
    statuses, error_codes, extensions, takes = outcomes.of(planned["job"])
    uri_of, keys = bucket.uri_of, planned["key"].to_pylist()
    copy_uris: list[str | None] = [None] * len(keys)
    if copies:
        rows = zip(planned["id"].to_pylist(), extensions, variants_of(planned), strict=True)
        copy_uris = [extension and uri_of(copy_name(row_id, extension, n)) for row_id, extension, n in rows]
    own = {
        "status": statuses,
        "uri": [
            extension and uri_of(image_name(key, extension, take))
            for key, extension, take in zip(keys, extensions, takes, strict=True)
        ],
        "copy_uri": copy_uris,
        "error_code": error_codes,
    }
    columns = {
        name: pa.array(own[name], pa.string()) if name in own else planned[name]
        for name in OWN_COLUMNS
        if name != "variant"
    }
    if max(takes, default=1) > 1:
        seeds = map(seed_of, planned["seed"].to_pylist(), takes)
        columns["seed"] = pa.array(seeds, planned["seed"].type)
    return pa.table(columns | {"variant": pa.array(variants_of(planned), pa.int32())})


def variants_of(planned: pa.Table | pa.RecordBatch) -> list[int]:
    """The variants of a plan's rows: 1 in the plan of an earlier version."""
    known: list[int] = planned["variant"].to_pylist() if "variant" in planned.schema.names else []
    return known or [1] * planned.num_rows
