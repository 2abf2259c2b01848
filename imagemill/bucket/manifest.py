"""The manifest: the current catalog, with the outcome of every row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagemill.bucket.image_bucket import ImageBucket, copy_name, image_names
from imagemill.catalog.plan import PLAN_SCHEMA
from imagemill.jobs import JobStatus, has_picture
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


_UNIQUE = frozenset({"id", "prompt", "seed", "key", "uri", "copy_uri"})
"""Columns that hardly repeat a value: they get no dictionary."""


class Publisher(NamedTuple):
    """A run that publishes a manifest. ``planned_at`` is in ISO format, in UTC; "" if it is not known."""

    run_id: str
    planned_at: str


class Ending(NamedTuple):
    """How a job ended: ``extension`` and ``take`` are its picture's, null and 1 where there is none.

    ``route`` made the picture; "" where it is not known, or there is none. ``suffix`` is what the name of the
    picture's object has after the key, null where there is none.
    """

    status: str
    error_code: str | None = None
    extension: str | None = None
    take: int = 1
    route: str = ""
    suffix: str | None = None


OUTCOME_FIELDS = ("status", "error_code", "image", "suspect", "route")
"""The fields of a job that its outcome is made from."""


class Outcomes:
    """The outcome of each job, by number; a million jobs take 4 MB."""

    def __init__(self) -> None:
        self._endings = {Ending("rejected"): 0}
        self._of_job = array("i")

    def add(self, jobs: pa.RecordBatch) -> None:
        """Add the next jobs, in order of their numbers: their ``OUTCOME_FIELDS`` at least."""
        columns = {name: jobs[name] for name in OUTCOME_FIELDS}
        # What follows the key in the image's name; folders have no dots.
        columns["image"] = pc.replace_substring_regex(columns["image"], r"^[^.]*\.?", "")
        kinds = np.zeros(jobs.num_rows, np.int64)
        for column in columns.values():
            values = column.dictionary_encode("encode")
            if len(values.dictionary) > 1:
                several = kinds * len(values.dictionary) + values.indices.to_numpy()
                kinds = np.unique(several, return_inverse=True)[1]
        first = np.unique(kinds, return_index=True)[1]
        rows = zip(*[column.take(first).to_pylist() for column in columns.values()], strict=True)
        places = [self._endings.setdefault(_ending(*row), len(self._endings)) for row in rows]
        self._of_job.frombytes(np.array(places, np.intc)[kinds].tobytes())

    @property
    def has_failed(self) -> bool:
        """Whether a job has failed."""
        return any(ending.status == JobStatus.FAILED for ending in self._endings)

    def of(self, jobs: pa.Array | pa.ChunkedArray) -> pa.Table:
        """How these jobs ended, a column for each field of :class:`Ending`; null is a rejected row."""
        numbers = jobs.fill_null(-1).to_numpy()
        places = np.zeros(len(numbers), np.intc)
        known = numbers >= 0
        places[known] = np.frombuffer(self._of_job, np.intc)[numbers[known]]
        return pa.Table.from_pylist([ending._asdict() for ending in self._endings], _ENDINGS).take(places)


_ENDINGS = pa.schema(
    [
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("extension", pa.string()),
        ("take", pa.int64()),
        ("route", pa.string()),
        ("suffix", pa.string()),
    ]
)


def _ending(status: str, error_code: str | None, kind: str | None, suspect: str, route: str) -> Ending:
    """How a job ended whose image's name goes on like this after the key: ``png``, or ``2.png``."""
    shown, name = str(JobStatus.PENDING if status == JobStatus.RUNNING else status), f"key.{kind}"
    if kind is None or not has_picture(status, name, suspect):
        return Ending(shown, error_code)
    return Ending(shown, error_code, kind.rpartition(".")[2], take_of(name), route, f".{kind}")


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
            repeated = [name for name in table.column_names if name not in _UNIQUE]
            writer = writer or pq.ParquetWriter(
                file, table.schema.with_metadata(known_by), compression="zstd", use_dictionary=repeated
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
    made = pa.array(map(makers.get, outcomes.of(planned["job"])["route"].to_pylist()), pa.string())
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
    endings, copy_uris = outcomes.of(planned["job"]), pa.nulls(planned.num_rows, pa.string())
    if copies:
        extensions = endings["extension"].to_pylist()
        rows = zip(planned["id"].to_pylist(), extensions, variants_of(planned).to_pylist(), strict=True)
        names = [extension and copy_name(row_id, extension, number) for row_id, extension, number in rows]
        copy_uris = pa.array([name and bucket.uri_of(name) for name in names], pa.string())
    own = {
        "status": endings["status"],
        "uri": pc.binary_join_element_wise(
            bucket.uri_of(""), image_names(planned["key"], endings["suffix"]), ""
        ),
        "copy_uri": copy_uris,
        "error_code": endings["error_code"],
    }
    columns = {name: own.get(name, planned[name] if name not in own else None) for name in OWN_COLUMNS[:-1]}
    if pc.any(pc.greater(endings["take"], 1)).as_py():
        seeds = map(seed_of, planned["seed"].to_pylist(), endings["take"].to_pylist())
        columns["seed"] = pa.array(seeds, planned["seed"].type)
    return pa.table(columns | {"variant": variants_of(planned)})


def variants_of(planned: pa.Table | pa.RecordBatch) -> pa.Array | pa.ChunkedArray:
    """The variants of a plan's rows: 1 in the plan of an earlier version."""
    if "variant" in planned.schema.names:
        return planned["variant"]
    return pa.repeat(pa.scalar(1, pa.int32()), planned.num_rows)
