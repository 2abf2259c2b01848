"""Plans a run: reads and checks the catalog, keys its rows, drops duplicates, and hands over jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.catalog.cost import Picture, levers, total_of
from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.digest_index import DIGEST_BYTES, DigestIndex, text_digests
from imagemill.catalog.files import BATCH_ROWS, CatalogFiles, unreadable
from imagemill.catalog.keys import KEY_BYTES, in_hex, job_digests, key_head
from imagemill.catalog.makers import PictureMaker
from imagemill.catalog.rows import MAX_PROMPT_LENGTH, CatalogRows, Judged, kinds
from imagemill.catalog.shared_judge import judge_of
from imagemill.catalog.templates import varied_column
from imagemill.catalog.variations import Variations
from imagemill.errors import InputError
from imagemill.jobs import INPUT_FIELDS, Job, NewJobs
from imagemill.parquet import column_of, read_batches
from imagemill.settings import CATALOG_COLUMNS, PARAM_PREFIX, PictureSettings

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
        ("variant", pa.int32()),
        ("varied", pa.string()),
    ]
)
"""One row per picture that the catalog asks for, and per rejected catalog row; ``job`` is the number of its
job, null where ``reason`` says why there is none."""

REJECTED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        *[(name, pa.string()) for name in CATALOG_COLUMNS],
        ("varied", pa.string()),
    ]
)
"""``varied`` is the combination that was rejected; null if none of the row's pictures can be made."""

_LATER = {field.name: field.default for field in fields(Job) if field.name in INPUT_FIELDS[-3:]}
"""The fields of a job that earlier versions did not plan."""

_LARGEST_MARK = 2**31 - 1
_MOSTLY_UNIQUE = frozenset({"row", "id", "prompt", "seed", "key", "job"})


@dataclass
class Planner:
    """Turns catalog rows into jobs. Duplicates (equal keys) are one job.

    Rows are checked and keyed a batch and a column at a time; of those that have passed, two digests stay.

    Args:
        api: whose models' profiles and prices count; nothing is asked of it.
        picture: defaults for rows that don't set their own.

    Raises:
        InputError: the model does not make images in the format asked for, or does not take the settings'
            params.
    """

    api: PictureMaker
    picture: PictureSettings
    _keys: DigestIndex = field(default_factory=DigestIndex)
    _ids: DigestIndex = field(default_factory=DigestIndex)
    _unique: int = 0
    _rows: int = 0
    _rejected: int = 0
    _asked: int = 0
    _variations: Variations = field(default_factory=Variations)
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
        self._judge = judge_of(self.api, self.picture)
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
            duplicates=self._asked - self._unique,
            cost_usd=float(cost),
            duplicates_usd=float(total_of(self.api, self._repeated)[0]),
            variants=self._variations.per_row,
            negative_prompts=self._negative_prompts,
            unpriced=unpriced,
            levers=[asdict(lever) for lever in levers(self.api, self._made, self._repeated)],
        )

    def refusal_of_settings(self) -> str | None:
        """Why a row that sets nothing but a prompt would be rejected; None if it would not."""
        row = self._variations.combined(pa.table({"prompt": ["a prompt"]}))
        reasons = self._judge.judge(row, [0] * row.num_rows, {}).reasons
        return reasons[0] if len(reasons) == row.num_rows else None

    def plan(self, catalog: CatalogFiles) -> Iterator[tuple[pa.Table, pa.Table, NewJobs]]:
        """Batch by batch: the plan's rows, the rejected rows, and the jobs that are new."""
        self._variations = catalog.variations
        rows = max(1, BATCH_ROWS // self._variations.per_row)
        for table in catalog.batches():
            for start in range(0, table.num_rows, rows):
                yield self._plan_batch(table.slice(start, rows), catalog)

    def _plan_batch(self, table: pa.Table, catalog: CatalogFiles) -> tuple[pa.Table, pa.Table, NewJobs]:
        variations, first_row = catalog.variations, self._rows
        self._rows += table.num_rows
        table, reasons = unreadable(variations.combined(table))
        combinations = len(variations.combinations)
        table = catalog.templates.applied(table, reasons)
        row_of = np.arange(first_row * combinations, self._rows * combinations) // combinations
        judged = self._judge.judge(table, row_of.tolist(), reasons)
        rows = variations.seeded(judged.rows)
        digests, first_job = self._digests_of(rows), self._unique
        keys = in_hex(digests)
        ids = rows.ids if "id" in table.column_names else None
        numbers, new = self._numbers(rows, _shortened(digests), ids, combinations)
        jobs = self._jobs(rows.only(new), [keys[index] for index in new], first_job, variations)
        if None in numbers:
            kept = [index for index, number in enumerate(numbers) if number is not None]
            for index in set(range(len(numbers))).difference(kept):
                judged.reasons[rows.places[index]] = "an earlier row has the same id and other content"
            rows, keys, numbers = rows.only(kept), [keys[i] for i in kept], [numbers[i] for i in kept]
        self._asked += len(rows.places)
        self._count(rows, jobs)
        refused = _Refused.of(judged, combinations)
        self._rejected += len(refused.places)
        plan = _plan_table(row_of, refused, rows, keys, numbers, table, catalog)
        return plan, _rejected_table(row_of, refused, table, catalog), jobs

    def _digests_of(self, rows: CatalogRows) -> bytes:
        """The rows' keys as bytes."""
        sizes = (rows.widths, rows.heights, rows.steps, rows.params)
        heads = {
            (width, height, steps, params): key_head(
                model=self._model,
                image_format=self.picture.format,
                width=width,
                height=height,
                steps=steps,
                params=params,
            )
            for width, height, steps, params in kinds(*sizes)
        }
        count = len(rows.places)
        used = self.api.profile.uses_negative_prompt
        negatives = rows.negative_prompts if used else [None] * count
        of_rows = (
            [*heads.values()] * count
            if len(heads) == 1
            else [heads[size] for size in zip(*sizes, strict=True)]
        )
        return job_digests(of_rows, rows.seeds, negatives, rows.prompts)

    def _numbers(
        self, rows: CatalogRows, digests: bytes, ids: Sequence[str] | None, combinations: int
    ) -> tuple[Sequence[int | None], list[int]]:
        """The number of each picture's job, None if its row's id has other content; and which jobs are new.

        Where there are ``ids``, rows are known by them.
        """
        if self._variations.per_row == 1:
            id_digests = b"" if ids is None else text_digests(pa.array(ids, pa.string()))
            distinct = ids is None or len(set(ids)) == len(ids)
            if distinct and (self._ids.places(id_digests) < 0).all():  # no id can have other content
                numbers = self._keys.number(digests)
                if ids is not None:
                    self._ids.add(id_digests, numbers)
                before = np.maximum.accumulate(np.concatenate(([self._unique - 1], numbers[:-1])))
                self._unique = len(self._keys)
                return numbers.tolist(), np.flatnonzero(numbers > before).tolist()
        catalog_rows = [place // combinations for place in rows.places]
        return self._numbers_one_by_one(catalog_rows, digests, ids)

    def _numbers_one_by_one(
        self, catalog_rows: list[int], digests: bytes, ids: Sequence[str] | None
    ) -> tuple[list[int | None], list[int]]:
        """The same, row by row; ``catalog_rows`` says which row of the batch each picture is of."""
        number = self._unique
        new: dict[bytes, int] = {}
        new_ids: dict[str, int] = {}
        new_rows: list[int] = []
        numbers: list[int | None] = []
        key_digests = [
            digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)
        ]
        known_keys = self._keys.find(digests)
        firsts = [
            place for place, row in enumerate(catalog_rows) if not place or row != catalog_rows[place - 1]
        ]
        row_ids = [] if ids is None else [ids[first] for first in firsts]
        known_ids = self._ids.find(text_digests(pa.array(row_ids, pa.string())))
        for place, (first, last) in enumerate(pairwise([*firsts, len(key_digests)])):
            mine: list[int] = []
            fresh: dict[bytes, int] = {}
            for picture in range(first, last):
                known = known_keys[picture]
                if known < 0:
                    key = key_digests[picture]
                    known = new.get(key, -1)
                    if known < 0:
                        known = fresh.setdefault(key, number + len(fresh))
                mine.append(known)
            if ids is not None:
                other = known_ids[place]
                mark = mine[0] if last == first + 1 else hash(tuple(mine)) & _LARGEST_MARK
                if other < 0:
                    other = new_ids.setdefault(row_ids[place], mark)
                if other != mark:
                    numbers += [None] * len(mine)
                    continue
            if fresh:
                new_rows += [first + mine.index(job) for job in fresh.values()]
                new |= fresh
                number += len(fresh)
            numbers += mine
        self._keys.add(b"".join(new), range(self._unique, number))
        self._ids.add(text_digests(pa.array(list(new_ids), pa.string())), list(new_ids.values()))
        self._unique = number
        return numbers, new_rows

    def _count(self, rows: CatalogRows, jobs: NewJobs) -> None:
        """Count rows that have a job, of which ``jobs`` are new, and what they cost."""
        if not self.api.profile.uses_negative_prompt:
            self._negative_prompts += len(rows.places) - rows.negative_prompts.count(None)
        asked = kinds(rows.widths, rows.heights, rows.steps, rows.params)
        made = kinds(*[jobs.column(name) for name in ("width", "height", "steps", "params")])
        for (width, height, steps, params), count in asked.items():
            picture = Picture(width, height, steps, params if self._priced_by_params else "")
            new = made[width, height, steps, params]
            self._made[picture] += new
            self._repeated[picture] += count - new

    def _jobs(self, rows: CatalogRows, keys: list[str], first: int, variations: Variations) -> NewJobs:
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
                rows.variants,
                variations.varied(rows.variants),
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
    schema = pa.schema([*PLAN_SCHEMA, *_carried(catalog)])
    repeated = [name for name in schema.names if name not in _MOSTLY_UNIQUE]
    with (
        pq.ParquetWriter(plan_file, schema, compression="zstd", use_dictionary=repeated) as plan_writer,
        pq.ParquetWriter(rejected_file, _rejected_schema(catalog), compression="zstd") as rejected_writer,
    ):
        for plan, rejected, jobs in planner.plan(catalog):
            plan_writer.write_table(plan)
            if rejected.num_rows:
                rejected_writer.write_table(rejected)
            if jobs:
                take(jobs)
    return planner.counts


def _carried(catalog: CatalogFiles) -> list[pa.Field]:
    """The columns of a plan that imagemill only carries: the catalog's, and the varied names."""
    varied = [pa.field(f"carried:{name}", pa.string()) for name in catalog.variations.carried]
    return [pa.field(f"carried:{field.name}", field.type) for field in catalog.carried] + varied


def _shortened(digests: bytes) -> bytes:
    """The digests of keys, as an index takes them."""
    return np.frombuffer(digests, np.uint8).reshape(-1, KEY_BYTES)[:, :DIGEST_BYTES].tobytes()


class _Refused(NamedTuple):
    """The rejected places of a batch, and why; one per row if all of its combinations are rejected."""

    places: list[int]
    reasons: list[str]
    names: list[str | None]
    whole: list[bool]

    @classmethod
    def of(cls, judged: Judged, combinations: int) -> _Refused:
        reasons, count = judged.reasons, Counter(place // combinations for place in judged.reasons)
        whole = {row for row, number in count.items() if number == combinations}
        places = [p for p in sorted(reasons) if p // combinations not in whole or p % combinations == 0]
        return cls(
            places,
            [reasons[place] for place in places],
            [judged.names[place] or None for place in places],
            [place // combinations in whole for place in places],
        )


def _plan_table(
    row_of: npt.NDArray[np.int64],
    refused: _Refused,
    rows: CatalogRows,
    keys: list[str],
    numbers: Sequence[int | None],
    batch: pa.Table,
    catalog: CatalogFiles,
) -> pa.Table:
    """The pictures of a batch in order, and the rejected rows between them."""
    variations = catalog.variations
    places = np.asarray(rows.places, np.int64)
    columns = [
        row_of[places], rows.ids, rows.prompts, rows.negative_prompts, rows.widths, rows.heights,
        rows.seeds, rows.steps, keys, numbers, [None] * len(keys), rows.params, rows.variants,
        variations.varied(rows.variants),
    ]  # fmt: skip
    planned = _table(columns, PLAN_SCHEMA)
    if refused.places:
        places = np.concatenate([places, refused.places])
        nothing = [None] * len(refused.places)
        variants = variations.variants_of(refused.places)
        columns = [
            row_of[refused.places], refused.names, _texts(batch["prompt"], refused.places),
            *[nothing] * 7, refused.reasons, nothing, variants, variations.varied(variants),
        ]  # fmt: skip
        planned = pa.concat_tables([planned, _table(columns, PLAN_SCHEMA)])
        order = np.lexsort((planned["variant"], planned["row"]))
        planned, places = planned.take(order).combine_chunks(), places[order]
    in_order = len(places) == batch.num_rows and (np.diff(places) == 1).all()
    for carried in _carried(catalog):
        name = carried.name
        if name not in batch.column_names:
            name = varied_column(name.removeprefix("carried:"))
        column = batch[name] if in_order else batch[name].combine_chunks().take(places)
        planned = planned.append_column(carried, column.cast(carried.type))
    return planned


def _rejected_schema(catalog: CatalogFiles) -> pa.Schema:
    """The columns of rejected rows: with all that the catalog has, they can be repaired and run."""
    own = {*REJECTED_SCHEMA.names}
    carried = [field for field in catalog.carried if field.name not in CATALOG_COLUMNS]
    params = [pa.field(catalog.columns[name], pa.string()) for name in _params_of(catalog)]
    return pa.schema(
        [
            *REJECTED_SCHEMA,
            *[
                each.with_name(f"catalog_{each.name}" if each.name in own else each.name)
                for each in (*carried, *params)
            ],
        ]
    )


def _params_of(catalog: CatalogFiles) -> list[str]:
    """The further fields of the model that have a column, by imagemill's names."""
    return [name for name in catalog.columns if name.startswith(PARAM_PREFIX)]


def _rejected_table(
    row_of: npt.NDArray[np.int64], refused: _Refused, batch: pa.Table, catalog: CatalogFiles
) -> pa.Table:
    schema, variations, places = _rejected_schema(catalog), catalog.variations, refused.places
    if not places:
        return schema.empty_table()
    columns: list[Any] = [row_of[places].tolist(), refused.reasons]
    for name in CATALOG_COLUMNS:  # what is not used, or made by a template, is here as the catalog has it
        there = name if name in catalog.columns else f"carried:{name}"
        absent = refused.names if name == "id" else [None] * len(places)
        columns.append(_texts(batch[there], places) if there in batch.column_names else absent)
    varied = variations.varied(variations.variants_of(places))
    columns.append([None if whole else text for text, whole in zip(varied, refused.whole, strict=True)])
    table = _table(columns, REJECTED_SCHEMA)
    carried = [f"carried:{field.name}" for field in catalog.carried if field.name not in CATALOG_COLUMNS]
    more = [*carried, *_params_of(catalog)]
    for field_of, name in zip(list(schema)[len(REJECTED_SCHEMA) :], more, strict=True):
        column = batch[name].combine_chunks().take(places)
        if name in catalog.columns:
            column = pa.array(_params_as_text(column.to_pylist()), pa.string())
        table = table.append_column(field_of, column.cast(field_of.type))
    return table


def _params_as_text(values: Sequence[Any]) -> list[str | None]:
    """A parameter's values in a form that is read back as the same ones; NaN stands for null."""
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    return [
        None if value is None or value != value else text for value, text in zip(values, texts, strict=True)
    ]


def _texts(column: pa.ChunkedArray, places: list[int]) -> list[str | None]:
    """Values as the catalog had them, in words of a bounded length."""
    values = (column[place].as_py() for place in places)
    return [None if value is None else str(value)[:MAX_PROMPT_LENGTH] for value in values]


def _table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    arrays = [column_of(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def planned_jobs(plan_file: Path, model: str, image_format: str) -> Iterator[NewJobs]:
    """The jobs of a plan, as they were first planned, in batches."""
    known = -1
    made = {"number", "model", "format"}
    there = pq.read_schema(plan_file).names  # the plan of an earlier version lacks what came later
    names = ["job", *[name for name in INPUT_FIELDS if name not in made and name in there]]
    for batch in read_batches(plan_file, names):
        numbers = batch["job"].fill_null(-1).to_numpy()
        before = np.maximum.accumulate(np.concatenate(([known], numbers[:-1])))
        first = batch.filter(pa.array(numbers > before))  # a job's first row has the highest number so far
        if first.num_rows:
            known = first["job"][-1].as_py()
            count = first.num_rows
            given = {name: first[name].to_pylist() for name in names}
            given |= {"number": given["job"], "model": [model] * count, "format": [image_format] * count}
            for name, default in _LATER.items():
                given.setdefault(name, [default] * count)
            yield NewJobs([given[name] for name in INPUT_FIELDS])
