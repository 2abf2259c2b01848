"""Plans a run: reads and checks the catalog, keys its rows, drops duplicates, and hands over jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.blocks.apis import ImageApi
from imagemill.catalog.cost import Picture, levers, total_of
from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.digest_index import DIGEST_BYTES, DigestIndex, text_digest
from imagemill.catalog.files import CatalogFiles
from imagemill.catalog.keys import job_keys, key_head
from imagemill.catalog.rows import MAX_PROMPT_LENGTH, CatalogRows, Judge, Judged
from imagemill.errors import InputError
from imagemill.jobs import INPUT_FIELDS, NewJobs
from imagemill.parquet import read_batches
from imagemill.settings import CATALOG_COLUMNS, PictureSettings

PLAN_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("key", pa.string()),
        ("job", pa.int64()),
        ("reason", pa.string()),
        ("params", pa.string()),
    ]
)
"""One row per catalog row; ``job`` is the number of its job, null where ``reason`` says why there is none."""

REJECTED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        *[(name, pa.string()) for name in CATALOG_COLUMNS],
    ]
)

_MOSTLY_UNIQUE = frozenset({"row", "id", "prompt", "seed", "key", "job"})


@dataclass
class Planner:
    """Turns catalog rows into jobs. Duplicates (equal keys) are one job.

    Rows are checked and keyed a batch and a column at a time; of those that have passed, two digests stay.

    Args:
        api: whose model's profile and price count; nothing is asked of it.
        picture: defaults for rows that don't set their own.

    Raises:
        InputError: the model does not make images in the format asked for, or does not take the settings'
            params.
    """

    api: ImageApi
    picture: PictureSettings
    _keys: DigestIndex = field(default_factory=DigestIndex)
    _ids: DigestIndex = field(default_factory=DigestIndex)
    _unique: int = 0
    _rows: int = 0
    _rejected: int = 0
    _made: Counter[Picture] = field(default_factory=Counter)
    _repeated: Counter[Picture] = field(default_factory=Counter)
    _negative_prompts: int = 0

    def __post_init__(self) -> None:
        formats = self.api.image_formats
        if self.picture.format not in formats:
            raise InputError(
                f"The provider {self.api.provider} does not make {self.picture.format} images."
                f" Choose {' or '.join(sorted(formats))}."
            )
        self._judge = Judge(self.api, self.picture)
        price = self.api.profile.price
        self._priced_by_params = price is not None and bool(price.tokens)
        self._model = self.api.picture_model

    @property
    def counts(self) -> PlanCounts:
        """What was planned so far."""
        cost, unpriced = total_of(self.api, self._made)
        return PlanCounts(
            rows=self._rows,
            rejected=self._rejected,
            unique=self._unique,
            duplicates=self._rows - self._rejected - self._unique,
            cost_usd=float(cost),
            duplicates_usd=float(total_of(self.api, self._repeated)[0]),
            negative_prompts=self._negative_prompts,
            unpriced=unpriced,
            levers=[asdict(lever) for lever in levers(self.api, self._made, self._repeated)],
        )

    def refusal_of_settings(self) -> str | None:
        """Why a row that sets nothing but a prompt would be rejected; None if it would not."""
        return self._judge.judge(pa.table({"prompt": ["a prompt"]}), 0, {}).reasons.get(0)

    def plan(self, catalog: CatalogFiles) -> Iterator[tuple[pa.Table, pa.Table, NewJobs]]:
        """Batch by batch: the plan's rows, the rejected rows, and the jobs that are new."""
        for table in catalog.batches():
            yield self._plan_batch(table, catalog)

    def _plan_batch(self, table: pa.Table, catalog: CatalogFiles) -> tuple[pa.Table, pa.Table, NewJobs]:
        first_row = self._rows
        reasons: dict[int, str] = {}
        table = catalog.templates.applied(table, reasons)
        judged = self._judge.judge(table, first_row, reasons)
        rows, keys = judged.rows, self._keys_of(judged.rows)
        first_job = self._unique
        numbers, new = self._numbers(rows, keys, known_by_id="id" in table.column_names)
        jobs = self._jobs(rows.only(new), [keys[index] for index in new], first_job)
        if None in numbers:
            kept = [index for index, number in enumerate(numbers) if number is not None]
            for index in set(range(len(numbers))).difference(kept):
                judged.reasons[rows.places[index]] = "an earlier row has the same id and other content"
            rows, keys, numbers = rows.only(kept), [keys[i] for i in kept], [numbers[i] for i in kept]
        self._rows += table.num_rows
        self._rejected += len(judged.reasons)
        self._count(rows, jobs)
        plan = _plan_table(first_row, judged, rows, keys, numbers, table)
        for carried in catalog.carried:
            plan = plan.append_column(
                pa.field(f"carried:{carried.name}", carried.type),
                table[f"carried:{carried.name}"].cast(carried.type),
            )
        return plan, _rejected_table(first_row, judged, table), jobs

    def _keys_of(self, rows: CatalogRows) -> list[str]:
        sizes = list(zip(rows.widths, rows.heights, rows.steps, rows.params, strict=True))
        heads = {
            (width, height, steps, params): key_head(
                model=self._model,
                image_format=self.picture.format,
                width=width,
                height=height,
                steps=steps,
                params=params,
            )
            for width, height, steps, params in set(sizes)
        }
        used = self.api.profile.uses_negative_prompt
        negatives = rows.negative_prompts if used else [None] * len(sizes)
        return job_keys([heads[size] for size in sizes], rows.seeds, negatives, rows.prompts)

    def _numbers(
        self, rows: CatalogRows, keys: list[str], *, known_by_id: bool
    ) -> tuple[list[int | None], list[int]]:
        """The number of each row's job, None where its id had another one; and the rows whose job is new."""
        number = self._unique
        new: dict[str, int] = {}
        new_ids: dict[bytes, int] = {}
        new_rows: list[int] = []
        numbers: list[int | None] = []
        key_digests = [key[: 2 * DIGEST_BYTES] for key in keys]
        known_keys = self._keys.find(bytes.fromhex("".join(key_digests)))
        id_digests = [text_digest(row_id) for row_id in rows.ids] if known_by_id else []
        known_ids = self._ids.find(b"".join(id_digests))
        for row, key in enumerate(key_digests):
            mine = known_keys[row]
            if mine < 0:
                mine = new.get(key, number)
            if known_by_id:
                other = known_ids[row]
                if other < 0:
                    other = new_ids.setdefault(id_digests[row], mine)
                if other != mine:
                    numbers.append(None)
                    continue
            if mine == number:
                new[key] = number
                new_rows.append(row)
                number += 1
            numbers.append(mine)
        self._keys.add(bytes.fromhex("".join(new)), range(self._unique, number))
        self._ids.add(b"".join(new_ids), list(new_ids.values()))
        self._unique = number
        return numbers, new_rows

    def _count(self, rows: CatalogRows, jobs: NewJobs) -> None:
        """Count rows that have a job, of which ``jobs`` are new, and what they cost."""
        if not self.api.profile.uses_negative_prompt:
            self._negative_prompts += len(rows.places) - rows.negative_prompts.count(None)
        asked = Counter(zip(rows.widths, rows.heights, rows.steps, rows.params, strict=True))
        fields = (jobs.column(name) for name in ("width", "height", "steps", "params"))
        made = Counter(zip(*fields, strict=True))
        for (width, height, steps, params), count in asked.items():
            picture = Picture(width, height, steps, params if self._priced_by_params else "")
            new = made[width, height, steps, params]
            self._made[picture] += new
            self._repeated[picture] += count - new

    def _jobs(self, rows: CatalogRows, keys: list[str], first: int) -> NewJobs:
        count = len(keys)
        return NewJobs(
            [
                range(first, first + count),
                rows.ids,
                keys,
                rows.prompts,
                rows.negative_prompts,
                rows.widths,
                rows.heights,
                rows.seeds,
                rows.steps,
                [self.api.model] * count,
                [self.picture.format] * count,
                rows.params,
            ]
        )


def write_plan(
    planner: Planner,
    catalog: CatalogFiles,
    plan_file: Path,
    rejected_file: Path,
    take: Callable[[NewJobs], None],
) -> PlanCounts:
    """Plan a whole catalog: the plan and the rejected rows into files, new jobs to ``take``."""
    schema = PLAN_SCHEMA
    for carried in catalog.carried:
        schema = schema.append(pa.field(f"carried:{carried.name}", carried.type))
    repeated = [name for name in schema.names if name not in _MOSTLY_UNIQUE]
    with (
        pq.ParquetWriter(plan_file, schema, compression="zstd", use_dictionary=repeated) as plan_writer,
        pq.ParquetWriter(rejected_file, REJECTED_SCHEMA, compression="zstd") as rejected_writer,
    ):
        for plan, rejected, jobs in planner.plan(catalog):
            plan_writer.write_table(plan)
            if rejected.num_rows:
                rejected_writer.write_table(rejected)
            if jobs:
                take(jobs)
    return planner.counts


def _plan_table(
    first_row: int,
    judged: Judged,
    rows: CatalogRows,
    keys: list[str],
    numbers: list[Any],
    batch: pa.Table,
) -> pa.Table:
    """The rows of a batch in order, those with a job and the rejected ones."""
    columns = [
        [first_row + place for place in rows.places], rows.ids, rows.prompts, rows.negative_prompts,
        rows.widths, rows.heights, rows.seeds, rows.steps, keys, numbers, [None] * len(keys), rows.params,
    ]  # fmt: skip
    planned = _table(columns, PLAN_SCHEMA)
    if not judged.reasons:
        return planned
    places = sorted(judged.reasons)
    nothing = [None] * len(places)
    columns = [
        [first_row + place for place in places], [judged.names[place] for place in places],
        _texts(batch["prompt"], places), *[nothing] * 7, [judged.reasons[place] for place in places],
        nothing,
    ]  # fmt: skip
    return pa.concat_tables([planned, _table(columns, PLAN_SCHEMA)]).sort_by("row").combine_chunks()


def _rejected_table(first_row: int, judged: Judged, batch: pa.Table) -> pa.Table:
    if not judged.reasons:
        return REJECTED_SCHEMA.empty_table()
    places = sorted(judged.reasons)
    raw = [
        _texts(batch[name], places) if name in batch.column_names else [None] * len(places)
        for name in CATALOG_COLUMNS
    ]
    numbers = [first_row + place for place in places]
    return _table([numbers, [judged.reasons[place] for place in places], *raw], REJECTED_SCHEMA)


def _texts(column: pa.ChunkedArray, places: list[int]) -> list[str | None]:
    """Values as the catalog had them, in words of a bounded length."""
    values = (column[place].as_py() for place in places)
    return [None if value is None else str(value)[:MAX_PROMPT_LENGTH] for value in values]


def _table(columns: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def planned_jobs(plan_file: Path, model: str, image_format: str) -> Iterator[NewJobs]:
    """The jobs of a plan, as they were first planned, in batches."""
    known = -1
    planned = [name for name in INPUT_FIELDS if name not in {"number", "model", "format", "params"}]
    names = ["job", *planned]
    if "params" in pq.read_schema(plan_file).names:  # not in the plan of an earlier version
        names.append("params")
    for batch in read_batches(plan_file, names):
        numbers = batch["job"].fill_null(-1).to_numpy()
        before = np.maximum.accumulate(np.concatenate(([known], numbers[:-1])))
        first = batch.filter(pa.array(numbers > before))  # a job's first row has the highest number so far
        if first.num_rows:
            known = first["job"][-1].as_py()
            count = first.num_rows
            given = {name: first[name].to_pylist() for name in names}
            given |= {"number": given["job"], "model": [model] * count, "format": [image_format] * count}
            given.setdefault("params", [""] * count)
            yield NewJobs([given[name] for name in INPUT_FIELDS])
