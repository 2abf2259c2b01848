"""Plans a run: reads and checks the catalog, keys its rows, drops duplicates, and hands over jobs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blocks.apis import ImageApi
from blocks.errors import InputError
from blocks.jobs import Job
from tasks.catalog import CatalogFiles
from tasks.keys import job_key, normalized, prompt_seed
from tasks.run_folder import PlanCounts
from tasks.settings import CATALOG_COLUMNS, PictureSettings

MAX_PROMPT_LENGTH = 20_000
MAX_ID_LENGTH = 2_000

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
    ]
)
"""A row a catalog row; ``job`` is the number of its job, null where ``reason`` says why there is none."""

REJECTED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        *[(name, pa.string()) for name in CATALOG_COLUMNS],
    ]
)


_JOB_INPUT = ("prompt", "negative_prompt", "width", "height", "seed", "steps")


class _Rejected(Exception):  # noqa: N818 - a verdict on a row, not an error of the program
    """Why a row never becomes a job."""


@dataclass
class Planner:
    """Turns catalog rows into jobs. Duplicates (equal keys) are one job.

    Args:
        api: whose limits, price and model count; nothing is asked of it.
        picture: what a row says nothing about.

    Raises:
        InputError: the API does not make images in the format asked for.
    """

    api: ImageApi
    picture: PictureSettings
    _numbers: dict[str, int] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)
    _refusals: dict[tuple[int, int, int], str | None] = field(default_factory=dict)
    _rows: int = 0
    _rejected: int = 0
    _cost_usd: float = 0.0
    _duplicates_usd: float = 0.0
    _negative_prompts: int = 0

    def __post_init__(self) -> None:
        if self.picture.format not in self.api.formats:
            raise InputError(
                f"The provider {self.api.provider} makes no {self.picture.format} images:"
                f" choose {' or '.join(sorted(self.api.formats))}."
            )
        policy = self.picture.seed_policy
        self._fixed_seed = int(policy.partition(":")[2]) if policy.startswith("fixed:") else None
        self._random = random.SystemRandom() if policy == "random" else None
        self._model = f"{self.api.provider}/{self.api.model}"

    @property
    def counts(self) -> PlanCounts:
        """What was planned so far."""
        unique = len(self._numbers)
        return PlanCounts(
            rows=self._rows,
            rejected=self._rejected,
            unique=unique,
            duplicates=self._rows - self._rejected - unique,
            cost_usd=self._cost_usd,
            duplicates_usd=self._duplicates_usd,
            negative_prompts=self._negative_prompts,
        )

    def plan(self, catalog: CatalogFiles) -> Iterator[tuple[pa.Table, pa.Table, list[Job]]]:
        """Batch by batch: the plan's rows, the rejected rows, and the jobs that are new."""
        for table in catalog.batches():
            yield self._plan_batch(table, catalog)

    def _plan_batch(self, table: pa.Table, catalog: CatalogFiles) -> tuple[pa.Table, pa.Table, list[Job]]:
        columns = {name: table[name].to_pylist() for name in catalog.columns}
        nothing = [None] * table.num_rows
        values = [columns.get(name, nothing) for name in CATALOG_COLUMNS]
        has_id = "id" in catalog.columns
        planned: list[tuple[Any, ...]] = []
        rejected: list[tuple[Any, ...]] = []
        jobs: list[Job] = []
        for prompt, row_id, negative, width, height, seed, steps in zip(*values, strict=True):
            row = self._rows
            self._rows += 1
            name = str(row)
            try:
                if has_id:
                    name = _identifier(row_id)
                job = self._job(name, prompt, negative, width, height, seed, steps)
                number = self._number(job, known_by_id=has_id)
            except _Rejected as verdict:
                self._rejected += 1
                reason = str(verdict)
                raw = (prompt, row_id, negative, width, height, seed, steps)
                texts = [None if v is None else str(v)[:MAX_PROMPT_LENGTH] for v in raw]
                rejected.append((row, reason, *texts))
                planned.append((row, name, texts[0], *[None] * 7, reason))
                continue
            if number == job.number:
                jobs.append(job)
            planned.append(
                (
                    row,
                    name,
                    job.prompt,
                    job.negative_prompt,
                    job.width,
                    job.height,
                    job.seed,
                    job.steps,
                    job.key,
                    number,
                    None,
                )
            )
        plan = _table(planned, PLAN_SCHEMA)
        for carried in catalog.carried:
            plan = plan.append_column(
                pa.field(f"carried:{carried.name}", carried.type),
                table[f"carried:{carried.name}"].cast(carried.type),
            )
        return plan, _table(rejected, REJECTED_SCHEMA), jobs

    def _job(
        self,
        row_id: str,
        raw_prompt: object,
        raw_negative: object,
        raw_width: object,
        raw_height: object,
        raw_seed: object,
        raw_steps: object,
    ) -> Job:
        prompt = normalized(raw_prompt) if isinstance(raw_prompt, str) else ""
        if not prompt:
            raise _Rejected("blank prompt")
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise _Rejected(f"prompt of {len(prompt):,} characters; at most {MAX_PROMPT_LENGTH:,}")
        width = _whole("width", raw_width, self.picture.width)
        height = _whole("height", raw_height, self.picture.height)
        steps = _whole("steps", raw_steps, self.picture.steps)
        size = (width, height, steps)
        if size not in self._refusals:
            self._refusals[size] = self.api.refusal(*size)
        if refusal := self._refusals[size]:
            raise _Rejected(refusal)
        seed = self._seed(prompt, raw_seed)
        negative = normalized(raw_negative) if isinstance(raw_negative, str) else ""
        image_format = self.picture.format
        key = job_key(
            model=self._model,
            prompt=prompt,
            negative_prompt=(negative or None) if self.api.uses_negative_prompt else None,
            width=width,
            height=height,
            steps=steps,
            seed=seed,
            image_format=image_format,
        )
        return Job(
            number=len(self._numbers),
            id=row_id,
            key=key,
            prompt=prompt,
            negative_prompt=negative or None,
            width=width,
            height=height,
            seed=seed,
            steps=steps,
            model=self.api.model,
            format=image_format,
        )

    def _number(self, job: Job, *, known_by_id: bool) -> int:
        """The number of the job that makes this picture: a new one, or an earlier row's."""
        number = self._numbers.get(job.key, job.number)
        if known_by_id and self._ids.setdefault(job.id, number) != number:
            raise _Rejected("id seen before with other content")
        if job.negative_prompt and not self.api.uses_negative_prompt:
            self._negative_prompts += 1
        price = self.api.price_usd(job.width, job.height)
        if number == job.number:
            self._numbers[job.key] = number
            self._cost_usd += price
        else:
            self._duplicates_usd += price
        return number

    def _seed(self, prompt: str, raw: object) -> int:
        if raw is not None and raw == raw:  # not NaN
            seed = _whole("seed", raw, 0)
            if not 0 <= seed <= self.api.largest_seed:
                raise _Rejected(f"seed {seed} is not between 0 and {self.api.largest_seed}")
            return seed
        if self._fixed_seed is not None:
            return self._fixed_seed
        return self._random.getrandbits(31) if self._random else prompt_seed(prompt)


def write_plan(
    planner: Planner,
    catalog: CatalogFiles,
    plan_file: Path,
    rejected_file: Path,
    take: Callable[[list[Job]], None],
) -> PlanCounts:
    """Plan a whole catalog: the plan and the rejected rows into files, new jobs to ``take``."""
    schema = PLAN_SCHEMA
    for carried in catalog.carried:
        schema = schema.append(pa.field(f"carried:{carried.name}", carried.type))
    with (
        pq.ParquetWriter(plan_file, schema, compression="zstd") as plan_writer,
        pq.ParquetWriter(rejected_file, REJECTED_SCHEMA, compression="zstd") as rejected_writer,
    ):
        for plan, rejected, jobs in planner.plan(catalog):
            plan_writer.write_table(plan)
            if rejected.num_rows:
                rejected_writer.write_table(rejected)
            if jobs:
                take(jobs)
    return planner.counts


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _identifier(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas turns whole numbers into floats where one is missing
    if value is None or value != value or not str(value).strip():
        raise _Rejected("blank id")
    name = str(value)
    if len(name) > MAX_ID_LENGTH:
        raise _Rejected(f"id of {len(name):,} characters; at most {MAX_ID_LENGTH:,}")
    return name


def _whole(name: str, value: object, default: int) -> int:
    if value is None or value != value:  # null, or the NaN that stands for it
        return default
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _Rejected(f"{name} {str(value)[:40]!r} is not a whole number")


def planned_jobs(plan_file: Path, model: str, image_format: str) -> Iterator[list[Job]]:
    """The jobs of a plan, as they were first planned, in batches."""
    next_number = 0
    for batch in pq.ParquetFile(plan_file).iter_batches(columns=PLAN_SCHEMA.names):
        jobs: list[Job] = []
        for row in batch.to_pylist():
            if row["job"] != next_number:
                continue
            next_number += 1
            given = {name: row[name] for name in ("id", "key", *_JOB_INPUT)}
            jobs.append(Job(number=row["job"], model=model, format=image_format, **given))
        if jobs:
            yield jobs
