"""The job store in SQL, through SQLAlchemy: SQLite in a file of its own, the embedded default.

One table holds the jobs of many runs, one the runs themselves. SQLite runs in WAL mode with
``synchronous=NORMAL``: a commit survives the death of the process. What a power cut could undo is found
again on resume, since an image is in the bucket before its job is done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from blocks.errors import InputError
from blocks.jobs import JOB_FIELDS, STATE_FIELDS, Job, JobStatus
from blocks.stores.base import JobState, JobStore, JobTotals

_metadata = sa.MetaData()

_runs = sa.Table(
    "imagemill_runs",
    _metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
)

_jobs = sa.Table(
    "imagemill_jobs",
    _metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("negative_prompt", sa.Text),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("format", sa.String(8), nullable=False),
    sa.Column("status", sa.String(8), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("image", sa.Text),
    sa.Column("image_bytes", sa.BigInteger),
    sa.Column("reused", sa.Boolean, nullable=False),
    sa.Column("latency_s", sa.Double),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_class", sa.String(32)),
    sa.Column("error_message", sa.Text),
    sa.Column("retryable", sa.Boolean),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
)

_UNFINISHED = _jobs.c.status.in_([JobStatus.PENDING, JobStatus.RUNNING])
_COLUMNS = [_jobs.c[name] for name in JOB_FIELDS]
_STATUS = JOB_FIELDS.index("status")


class SqlStore(JobStore):
    """The jobs of ``run_id`` in the SQLite file ``path``."""

    name = "sqlite"

    def __init__(self, path: Path, run_id: str) -> None:
        super().__init__()
        self._path = path
        self._run_id = run_id
        self._of_run = _jobs.c.run_id == run_id
        self._engine: AsyncEngine = create_async_engine(sa.URL.create("sqlite+aiosqlite", database=str(path)))
        sa.event.listen(self._engine.sync_engine, "connect", _configure_sqlite)
        self._update = (
            sa.update(_jobs)
            .where(self._of_run, _jobs.c.number == sa.bindparam("b_number"))
            .values({name: sa.bindparam(f"b_{name}") for name in STATE_FIELDS})
        )

    async def is_planned(self) -> bool:
        async with self._engine.connect() as connection:
            found = await connection.scalar(sa.select(_runs.c.run_id).where(_runs.c.run_id == self._run_id))
        return found is not None

    async def clear(self) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(_runs).where(_runs.c.run_id == self._run_id))
            await connection.execute(sa.delete(_jobs).where(self._of_run))

    async def add(self, jobs: Sequence[Job]) -> None:
        rows = [{"run_id": self._run_id, **{name: getattr(job, name) for name in JOB_FIELDS}} for job in jobs]
        async with self._engine.begin() as connection:
            await connection.execute(sa.insert(_jobs), rows)

    async def mark_planned(self) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(sa.insert(_runs), {"run_id": self._run_id})

    async def unfinished_numbers(self) -> Sequence[int]:
        query = sa.select(_jobs.c.number).where(self._of_run, _UNFINISHED).order_by(_jobs.c.number)
        async with self._engine.connect() as connection:
            return (await connection.scalars(query)).all()

    async def unfinished(self, first: int, last: int) -> list[Job]:
        query = (
            sa.select(*_COLUMNS)
            .where(self._of_run, _jobs.c.number.between(first, last), _UNFINISHED)
            .order_by(_jobs.c.number)
        )
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(query)]

    async def all_jobs(self, batch_size: int = 10_000) -> AsyncIterator[list[Job]]:
        last = -1
        while True:
            query = (
                sa.select(*_COLUMNS)
                .where(self._of_run, _jobs.c.number > last)
                .order_by(_jobs.c.number)
                .limit(batch_size)
            )
            async with self._engine.connect() as connection:
                jobs = [_job(row) for row in await connection.execute(query)]
            if not jobs:
                return
            yield jobs
            last = jobs[-1].number

    async def totals(self) -> JobTotals:
        retries = sa.case((_jobs.c.attempts > 1, _jobs.c.attempts - 1), else_=0)
        query = (
            sa.select(
                _jobs.c.status,
                _jobs.c.reused,
                sa.func.count(),
                sa.func.sum(_jobs.c.attempts),
                sa.func.sum(retries),
                sa.func.sum(_jobs.c.cost_usd),
            )
            .where(self._of_run)
            .group_by(_jobs.c.status, _jobs.c.reused)
        )
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        counts = dict.fromkeys(JobStatus, 0)
        for status, _, count, *_ in rows:
            counts[JobStatus(status)] += count
        return JobTotals(
            done=counts[JobStatus.DONE],
            failed=counts[JobStatus.FAILED],
            pending=counts[JobStatus.PENDING] + counts[JobStatus.RUNNING],
            reused=sum(n for status, reused, n, *_ in rows if reused and status == JobStatus.DONE),
            attempts=sum(int(row[3]) for row in rows),
            retries=sum(int(row[4]) for row in rows),
            cost_usd=sum(float(row[5]) for row in rows),
        )

    async def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            async with self._engine.begin() as connection:
                await connection.run_sync(_metadata.create_all)
        except (OSError, sa.exc.SQLAlchemyError) as error:
            await self._engine.dispose()
            reason = getattr(error, "orig", None) or error
            raise InputError(
                f"The job store sqlite:{self._path} cannot be opened ({reason}): give a path that can"
                " be written, by --store sqlite:PATH."
            ) from error

    async def _close(self) -> None:
        await self._engine.dispose()

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:  # noqa: ARG002
        if not batch:
            return
        names = ["b_number", *[f"b_{name}" for name in STATE_FIELDS]]
        rows = [dict(zip(names, state, strict=True)) for state in batch]
        async with self._engine.begin() as connection:
            await connection.execute(self._update, rows)


def _job(row: sa.Row[Any]) -> Job:
    values = list(row)
    values[_STATUS] = JobStatus(values[_STATUS])
    return Job(*values)


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - any DBAPI's
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
