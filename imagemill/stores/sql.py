"""The job stores in SQL, through SQLAlchemy: SQLite in a file, the embedded default, and Postgres.

One table holds the jobs of all runs, one the runs themselves, one their leases. SQLite runs in WAL mode with
``synchronous=NORMAL``: a commit survives the death of the process. What a power cut could undo is found again
on resume, because an image is in the bucket before its job is done. The run's log is fsynced before each
commit: what survives of that, the log tells of as well.

What touches a million jobs uses the drivers directly: to add them, multi-row statements in SQLite, which run
without Python's lock, and asyncpg's COPY; to read them as columns, the drivers' own rows.
"""

from __future__ import annotations

import sqlite3
import time
from abc import abstractmethod
from array import array
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import asyncpg
import orjson
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from imagemill.durable import make_durable
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import (
    FRESH_STATE,
    INPUT_FIELDS,
    JOB_FIELDS,
    STATE_FIELDS,
    Job,
    JobStatus,
    NewJobs,
)
from imagemill.parquet import is_constant
from imagemill.store_address import PASSWORD_VARIABLE, StoreAddress
from imagemill.stores.base import CONNECT_S, JobState, JobStore, JobTotals, reason_of, record_batch
from imagemill.stores.encoding import MARK, escape, is_odd, unescape
from imagemill.stores.postgres_board import PostgresBoard
from imagemill.stores.tables import JOBS, LEASES, RUNS, make_tables
from imagemill.takes import REJECTED
from imagemill.usd import PICOS, of_picos

_UNFINISHED = JOBS.c.status.in_([JobStatus.PENDING, JobStatus.RUNNING])
_COLUMNS = [JOBS.c[name] for name in JOB_FIELDS]
_STATUS = JOB_FIELDS.index("status")
_INPUT_TEXTS, _STATE_TEXTS = (
    [index for index, name in enumerate(names) if isinstance(JOBS.c[name].type, sa.Text)]
    for names in (INPUT_FIELDS, STATE_FIELDS)
)
_INSERTED = ["run_id", *INPUT_FIELDS, *STATE_FIELDS]
_TRUTH = {0: False, 1: True}
"""What SQLite keeps for a truth value; NULL stays one."""
_MARK_IN_JSON = f"\\u{ord(MARK):04x}"
_PAGE = 50_000
_ROWS_A_STATEMENT = 500
"""Up to fourteen values per row. More rows are slower again; SQLite allows 32,766 values per statement."""
_SCHEMA_LOCK = 7_162_534_129
"""An arbitrary number for the lock under which only one process at a time creates the tables."""


class SqlStore(JobStore):
    """The jobs of ``run_id`` in a database."""

    outages: ClassVar[tuple[type[Exception], ...]] = (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError)
    now: ClassVar[sa.ColumnElement[float]]
    """The time by the database's clock, in Unix seconds."""

    def __init__(self, engine: AsyncEngine, run_id: str, *, join: bool) -> None:
        super().__init__(join=join)
        self._engine = engine
        self._run_id = run_id
        self._of_run = JOBS.c.run_id == run_id

    async def is_planned(self) -> bool:
        query = sa.select(RUNS.c.run_id).where(RUNS.c.run_id == self._run_id)
        return bool(await self._rows(query))

    async def clear(self) -> None:
        await self._change(
            sa.delete(RUNS).where(RUNS.c.run_id == self._run_id), sa.delete(JOBS).where(self._of_run)
        )

    async def add(self, jobs: Sequence[Job]) -> None:
        columns = [
            _escaped_column(column) if index in _INPUT_TEXTS else column
            for index, column in enumerate(NewJobs.of(jobs).columns)
        ]
        try:
            async with self._engine.connect() as connection:
                raw = await connection.get_raw_connection()
                await self._add_columns(raw.driver_connection, columns)
        except self.outages as error:
            raise StoreUnavailableError(
                f"{self._title} did not accept the plan: {reason_of(error)}."
            ) from error

    async def mark_planned(self) -> None:
        await self._change(
            sa.delete(RUNS).where(RUNS.c.run_id == self._run_id),
            sa.insert(RUNS).values(run_id=self._run_id),
        )

    async def unfinished_numbers(self) -> Sequence[int]:
        query = sa.select(JOBS.c.number).where(self._of_run, _UNFINISHED).order_by(JOBS.c.number)

        async def read() -> array[int]:
            numbers = array("q")
            async with self._engine.connect() as connection:
                # One scan: right after a bulk insert, without statistics, one per page may be chosen.
                result = await connection.stream(query, execution_options={"yield_per": _PAGE})
                async for page in result.scalars().partitions():
                    numbers.extend(page)
            return numbers

        return await self.patiently(read)

    async def unfinished(self, first: int, last: int) -> list[Job]:
        query = (
            sa.select(*_COLUMNS)
            .where(self._of_run, JOBS.c.number.between(first, last), _UNFINISHED)
            .order_by(JOBS.c.number)
        )
        return _jobs(await self._rows(query))

    async def all_jobs(self, batch_size: int = 2_000) -> AsyncIterator[list[Job]]:
        last = -1
        while True:
            query = (
                sa.select(*_COLUMNS)
                .where(self._of_run, JOBS.c.number > last)
                .order_by(JOBS.c.number)
                .limit(batch_size)
            )
            jobs = _jobs(await self._rows(query))
            if not jobs:
                return
            yield jobs
            last = jobs[-1].number

    async def all_columns(
        self, names: Sequence[str], *, failed_only: bool = False, batch_size: int = 5_000
    ) -> AsyncIterator[pa.RecordBatch]:
        wanted = [self._of_run]
        if failed_only:
            wanted.append(JOBS.c.status == JobStatus.FAILED)
        last = -1
        fields = ["number", *[name for name in names if name != "number"]]
        while True:
            query = (
                sa.select(*[JOBS.c[name].label(f"c{place}") for place, name in enumerate(fields)])
                .where(*wanted, JOBS.c.number > last)
                .order_by(JOBS.c.number)
                .limit(batch_size)
            )
            columns = await self.patiently(self._columns_of, query, fields)
            if not columns[0]:
                return
            yield record_batch(fields, columns).select(list(names))
            last = columns[0][-1]

    async def _totals(self) -> JobTotals:
        (row,) = await self._rows(_totals_of(self._run_id))
        count, done, failed, rejected, reused, attempts, retries, unanswered, *picos = (
            int(n or 0) for n in row
        )
        cost, unanswered_cost, judge_cost = picos
        return JobTotals(
            done=done,
            failed=failed - rejected,
            rejected=rejected,
            pending=count - done - failed,
            reused=reused,
            attempts=attempts,
            retries=retries,
            cost_usd=of_picos(cost + judge_cost),
            unanswered=unanswered,
            unanswered_usd=of_picos(unanswered_cost),
            judge_usd=of_picos(judge_cost),
        )

    async def _rows(self, query: sa.Executable) -> list[tuple[Any, ...]]:
        async def read() -> list[tuple[Any, ...]]:
            async with self._engine.connect() as connection:
                return [tuple(row) for row in await connection.execute(query)]

        return await self.patiently(read)

    async def _columns_of(self, query: sa.Select[Any], names: Sequence[str]) -> list[Sequence[Any]]:
        """The columns of a query for fields of jobs, without SQLAlchemy's work on each row."""
        compiled = query.compile(dialect=self._engine.dialect)
        values = [compiled.params[name] for name in compiled.positiontup or ()]
        async with self._engine.connect() as connection:
            raw = await connection.get_raw_connection()
            try:
                return await self._fetch(raw.driver_connection, str(compiled), values, names)
            except self.outages:
                await connection.invalidate()  # it may be dead, and SQLAlchemy has not seen that
                raise

    async def _change(self, *statements: sa.Executable) -> None:
        async def change() -> None:
            async with self._engine.begin() as connection:
                for statement in statements:
                    await connection.execute(statement)

        await self.patiently(change)

    @abstractmethod
    async def _fetch(
        self,
        driver: Any,  # noqa: ANN401
        query: str,
        values: list[Any],
        names: Sequence[str],
    ) -> list[Sequence[Any]]:
        """The columns of a query for these fields, through the driver's own connection."""

    @abstractmethod
    async def _add_columns(self, driver: Any, columns: list[Sequence[Any]]) -> None:  # noqa: ANN401
        """Insert new jobs, all or none, through the driver's own connection."""

    async def _close(self) -> None:
        with anyio.move_on_after(CONNECT_S):
            await self._engine.dispose()

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:  # noqa: ARG002
        if not batch:
            return
        names = ["b_number", *[f"b_{name}" for name in STATE_FIELDS]]
        texts = [1 + index for index in _STATE_TEXTS]
        # Sorted, so that two processes that update the same jobs cannot deadlock.
        rows = [dict(zip(names, _escaped(state, texts), strict=True)) for state in sorted(batch, key=_number)]
        async with self._engine.begin() as connection:
            await connection.execute(_update_of(self._run_id), rows)

    async def _lease(self, holder: str, instead_of: str | None) -> str:
        free = sa.or_(
            LEASES.c.expires_at < self.now,
            LEASES.c.holder == holder,
            LEASES.c.holder == (instead_of or holder),
        )
        values = {"holder": holder, "expires_at": self.now + self.lease_s}
        mine = LEASES.c.run_id == self._run_id
        async with self._engine.begin() as connection:
            taken = await connection.execute(sa.update(LEASES).where(mine, free).values(values))
            if not taken.rowcount:
                await connection.execute(self._insert_lease(values))
            return str(await connection.scalar(sa.select(LEASES.c.holder).where(mine)))

    @abstractmethod
    def _insert_lease(self, values: dict[str, Any]) -> sa.Executable:
        """Insert the run's lease unless there is one."""

    async def _renew_lease(self, holder: str) -> bool:
        update = sa.update(LEASES).where(LEASES.c.run_id == self._run_id, LEASES.c.holder == holder)
        async with self._engine.begin() as connection:
            done = await connection.execute(update.values(expires_at=self.now + self.lease_s))
        return bool(done.rowcount)

    async def _free_lease(self, holder: str) -> None:
        delete = sa.delete(LEASES).where(LEASES.c.run_id == self._run_id, LEASES.c.holder == holder)
        async with self._engine.begin() as connection:
            await connection.execute(delete)


class SqliteStore(SqlStore):
    """The jobs of ``run_id`` in the SQLite file ``path``, committed after what is in ``log``."""

    name = "sqlite"
    now = sa.bindparam(None, callable_=time.time, type_=sa.Double)  # a file is local

    def __init__(self, path: Path, run_id: str, log: Path | None = None, *, join: bool = False) -> None:
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=str(path)), hide_parameters=True
        )
        sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
        super().__init__(engine, run_id, join=join)
        self._path, self._log = path, log

    async def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            async with self._engine.begin() as connection:
                await connection.run_sync(make_tables, self._title)
        except (OSError, sa.exc.SQLAlchemyError) as error:
            raise InputError(
                f"The job store sqlite:{self._path} cannot be opened ({reason_of(error)}). Use a path that"
                " can be written: --store sqlite:PATH."
            ) from error

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:
        if batch and self._log is not None and self._log.exists():
            await anyio.to_thread.run_sync(make_durable, self._log)
        await super()._write(batch, durable=durable)

    async def _fetch(
        self,
        driver: Any,  # noqa: ANN401
        query: str,
        values: list[Any],
        names: Sequence[str],
    ) -> list[Sequence[Any]]:
        # One row of columns as JSON: it is made without Python's lock, which each row of jobs would take.
        columns = ",".join(f"json_group_array(c{place})" for place in range(len(names)))
        try:
            (texts,) = await driver.execute_fetchall(f"SELECT {columns} FROM ({query})", values)  # noqa: S608 - our own names
        except sqlite3.Error as error:
            raise OSError(str(error)) from error
        return list(map(_column_of_json, names, texts))

    async def _add_columns(self, driver: Any, columns: list[Sequence[Any]]) -> None:  # noqa: ANN401
        shared = (False, *[is_constant(column) for column in columns[1:]])  # the first one is the number
        head = [self._run_id, *[column[0] for column, same in zip(columns, shared, strict=True) if same]]
        own = [column for column, same in zip(columns, shared, strict=True) if not same]
        rows = list(zip(*own, strict=True))
        whole = len(rows) - len(rows) % _ROWS_A_STATEMENT
        try:
            for start, end in ((0, whole), (whole, len(rows))):
                size = min(_ROWS_A_STATEMENT, end - start)
                if size:
                    groups = (rows[first : first + size] for first in range(start, end, size))
                    values = ([*head, *chain.from_iterable(group)] for group in groups)
                    await driver.executemany(_insert(size, shared), values)
            await driver.commit()
        except sqlite3.Error as error:
            await driver.rollback()
            raise OSError(str(error)) from error

    def _insert_lease(self, values: dict[str, Any]) -> sa.Executable:
        return sqlite.insert(LEASES).values(run_id=self._run_id, **values).on_conflict_do_nothing()


class PostgresStore(SqlStore, PostgresBoard):
    """The jobs of ``run_id`` in the Postgres database at ``address``."""

    outages: ClassVar[tuple[type[Exception], ...]] = (
        *SqlStore.outages,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
    )
    now = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def __init__(self, address: StoreAddress, run_id: str, *, join: bool = False) -> None:
        self.name = f"Postgres at {address}"
        self._address = address
        url = sa.URL.create(
            "postgresql+asyncpg",
            username=address.user,
            password=address.password,
            host=address.host,
            port=address.port,
            database=address.database,
        )
        engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=4,
            pool_timeout=30,
            connect_args={
                "timeout": CONNECT_S,
                "command_timeout": 30,  # well below OUTAGE_S: a dead connection must not use up the patience
                "ssl": _ssl_of(address.query),
                "server_settings": {"application_name": "imagemill"},
            },
        )
        super().__init__(engine, run_id, join=join)

    async def _in_transaction(self, statements: Sequence[sa.Executable]) -> list[Any]:
        async def run() -> list[Any]:
            async with self._engine.begin() as connection:
                results = [await connection.execute(statement) for statement in statements]
                return [r.all() if r.returns_rows else [] for r in results]

        return await self.patiently(run)

    async def _open(self) -> None:
        try:
            with anyio.fail_after(CONNECT_S):
                async with self._engine.connect() as connection:
                    await connection.execute(sa.select(1))
            async with self._engine.begin() as connection:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
                await connection.run_sync(make_tables, self._title)
        except self.outages as error:
            raise InputError(f"{self._title} cannot be used: {self._advice(error)}.") from error

    def _advice(self, error: Exception) -> str:
        text = str(error)
        user = f"the user {self._address.user!r}" if self._address.user else "this user"
        if "password" in text.lower():
            return f"the password of {user} is wrong or missing: set {PASSWORD_VARIABLE}"
        if "InvalidCatalogNameError" in text or isinstance(error, asyncpg.InvalidCatalogNameError):
            return f"there is no database {self._address.database!r}: create it"
        if isinstance(error, TimeoutError):
            return f"it has not answered within {CONNECT_S:.0f} s"
        return reason_of(error)

    async def _fetch(
        self,
        driver: Any,  # noqa: ANN401
        query: str,
        values: list[Any],
        names: Sequence[str],
    ) -> list[Sequence[Any]]:
        return _columns(await driver.fetch(query, *values), names)

    async def _add_columns(self, driver: Any, columns: list[Sequence[Any]]) -> None:  # noqa: ANN401
        records = [(self._run_id, *row, *FRESH_STATE) for row in zip(*columns, strict=True)]
        await driver.copy_records_to_table(JOBS.name, records=records, columns=_INSERTED)

    def _insert_lease(self, values: dict[str, Any]) -> sa.Executable:
        return postgresql.insert(LEASES).values(run_id=self._run_id, **values).on_conflict_do_nothing()


def _ssl_of(query: dict[str, str]) -> str:
    mode = query.get("sslmode", "prefer")
    if mode not in {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}:
        raise InputError(f"Postgres has no sslmode {mode!r}, which the job store's address sets.")
    return mode


@lru_cache(maxsize=4)
def _insert(rows: int, shared: tuple[bool, ...]) -> str:
    """The statement that inserts this many jobs.

    Its first parameters are what they share: the run id, and the values of the ``shared`` fields.
    """
    given = f"({','.join('?' * shared.count(False))})"
    places = iter(range(1, 1 + len(shared)))
    read = ["?" if same else f"column{next(places)}" for same in shared]
    fresh = [_literal(value) for value in FRESH_STATE]
    # By name: a table that an earlier version made has its newer columns last.
    columns = ",".join(f'"{name}"' for name in _INSERTED)
    return (
        f"INSERT INTO {JOBS.name} ({columns}) SELECT {','.join(['?', *read, *fresh])}"  # noqa: S608 - our own names
        f" FROM (VALUES {','.join([given] * rows)})"
    )


def _literal(value: str | float | None) -> str:
    """A default of a job's state, as SQL."""
    if value is None:
        return "NULL"
    return (
        f"'{value}'"
        if isinstance(value, str)
        else str(float(value) if isinstance(value, float) else int(value))
    )


@lru_cache(maxsize=8)
def _update_of(run_id: str) -> sa.Update:
    """The statement that writes the state of jobs of a run: to build it takes longer than to run it."""
    return (
        sa.update(JOBS)
        .where(JOBS.c.run_id == run_id, JOBS.c.number == sa.bindparam("b_number"))
        .values({name: sa.bindparam(f"b_{name}") for name in STATE_FIELDS})
    )


@lru_cache(maxsize=8)
def _totals_of(run_id: str) -> sa.Executable:
    """The query for the sums over a run's jobs; ungrouped, for SQLite would sort them."""
    done, failed = JOBS.c.status == JobStatus.DONE, JOBS.c.status == JobStatus.FAILED
    counted = [done, failed, sa.and_(failed, JOBS.c.error_code == REJECTED), sa.and_(done, JOBS.c.reused)]
    return sa.select(
        sa.func.count(),
        *[sa.func.sum(sa.case((condition, 1), else_=0)) for condition in counted],
        sa.func.sum(JOBS.c.attempts),
        sa.func.sum(sa.case((JOBS.c.attempts > 1, JOBS.c.attempts - 1), else_=0)),
        sa.func.sum(JOBS.c.unanswered),
        *[_picos_of(usd) for usd in (JOBS.c.cost_usd, JOBS.c.unanswered_usd, JOBS.c.judge_usd)],
    ).where(JOBS.c.run_id == run_id)


def _picos_of(column: sa.Column[float]) -> sa.ColumnElement[int]:
    """The sum of amounts, exact as :mod:`imagemill.usd` has it."""
    return sa.func.sum(sa.cast(sa.func.round(column * float(PICOS)), sa.BigInteger))


def _number(state: JobState) -> int:
    number: int = state[0]
    return number


def _escaped_column(texts: Sequence[str | None]) -> Sequence[str | None]:
    if not is_odd("".join(filter(None, texts))):
        return texts
    return [None if text is None else escape(text) for text in texts]


def _escaped(values: tuple[Any, ...], texts: list[int]) -> tuple[Any, ...]:
    """The values with those at ``texts`` escaped; mostly there is nothing to do."""
    if not is_odd("".join([values[index] or "" for index in texts])):
        return values
    escaped = list(values)
    for index in texts:
        if escaped[index] is not None:
            escaped[index] = escape(escaped[index])
    return tuple(escaped)


def _jobs(rows: Sequence[tuple[Any, ...]]) -> list[Job]:
    if not rows:
        return []
    columns = _columns(rows, JOB_FIELDS)
    columns[_STATUS] = [JobStatus(status) for status in columns[_STATUS]]
    return [Job(*values) for values in zip(*columns, strict=True)]


def _columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> list[Sequence[Any]]:
    """The columns of rows, their texts as they were before they were escaped, and truth values as such."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(names)
    for index, name in enumerate(names):
        kind = JOBS.c[name].type
        if isinstance(kind, sa.Boolean):
            columns[index] = list(map(_TRUTH.get, columns[index]))
        elif isinstance(kind, sa.Text) and _has_mark(columns[index]):
            columns[index] = [None if text is None else unescape(text) for text in columns[index]]
    return columns


def _column_of_json(name: str, text: str) -> Sequence[Any]:
    """The same for one column that SQLite has put together."""
    values: list[Any] = orjson.loads(text)
    if isinstance(JOBS.c[name].type, sa.Boolean):
        return list(map(_TRUTH.get, values))
    return [value and unescape(value) for value in values] if _MARK_IN_JSON in text else values


def _has_mark(texts: Sequence[str | None]) -> bool:
    return MARK in "".join(filter(None, texts[:1] if is_constant(texts) else texts))


def _configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - any DBAPI's
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
