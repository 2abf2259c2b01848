"""The tables of the job stores in SQL."""

from __future__ import annotations

import sqlalchemy as sa

from imagemill.stores.version import UNKNOWN, StoreVersion

METADATA = sa.MetaData()

VERSIONS = sa.Table(
    "imagemill_version",  # one row, of all the tables
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_by", sa.Text),
)

RUNS = sa.Table(
    "imagemill_runs",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
)

JOBS = sa.Table(
    "imagemill_jobs",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("negative_prompt", sa.Text),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("image", sa.Text),
    sa.Column("image_bytes", sa.BigInteger),
    sa.Column("reused", sa.Boolean, nullable=False),
    sa.Column("latency_s", sa.Double),
    sa.Column("cost_usd", sa.Double, nullable=False),
    sa.Column("unanswered", sa.Integer, nullable=False),
    sa.Column("unanswered_usd", sa.Double, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_class", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("retryable", sa.Boolean),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    # Columns that came later need a default: they are added to tables that an earlier version made.
    sa.Column("params", sa.Text, nullable=False, server_default=""),
    sa.Column("cost_source", sa.Text, nullable=False, server_default=""),
    sa.Column("queued_s", sa.Double, server_default=sa.null()),
    sa.Column("variant", sa.Integer, nullable=False, server_default="1"),
    sa.Column("varied", sa.Text, nullable=False, server_default=""),
    sa.Column("quality", sa.Text, nullable=False, server_default=""),
    sa.Column("suspect", sa.Text, nullable=False, server_default=""),
    sa.Column("judge_usd", sa.Double, nullable=False, server_default="0"),
    sa.Column("route", sa.Text, nullable=False, server_default=""),
    sa.Column("earlier", sa.Text, nullable=False, server_default=""),
    sqlite_with_rowid=False,  # the rows lie in the order of their key: half the work of an insert
)

LEASES = sa.Table(
    "imagemill_leases",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),  # Unix seconds of the database's own clock
)

NOTES = sa.Table(
    "imagemill_notes",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),  # Unix seconds of the database's own clock
)

BUDGETS = sa.Table(
    "imagemill_budgets",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("committed_usd", sa.Double, nullable=False),
)

RESERVATIONS = sa.Table(
    "imagemill_reservations",
    METADATA,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, primary_key=True),
)


def make_tables(connection: sa.Connection, store: str) -> None:
    """Make the tables where they are missing, and bring those of an earlier version up to date.

    ``store`` names the store in a sentence.

    Raises:
        InputError: they are there, and of a version that cannot be read.
    """
    found = _version_of(connection)
    if found is not None:
        found.check(store)
    METADATA.create_all(connection)
    here = StoreVersion.here()
    if found is None:
        # One step: SQLite lets two processes make the tables at once.
        row = sa.select(sa.literal(here.number), sa.literal(here.made_by)).where(
            ~sa.exists().select_from(VERSIONS)
        )
        connection.execute(sa.insert(VERSIONS).from_select(["number", "made_by"], row))
    elif found.number != here.number:
        _add_columns(connection)
        connection.execute(sa.update(VERSIONS).values(number=here.number, made_by=here.made_by))


def _add_columns(connection: sa.Connection) -> None:
    there = {column["name"] for column in sa.inspect(connection).get_columns(JOBS.name)}
    for column in JOBS.columns:
        if column.name not in there:
            definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {JOBS.name} ADD COLUMN {definition}"))


def _version_of(connection: sa.Connection) -> StoreVersion | None:
    """The tables' version; None where there are none. Version 1 did not always say its number."""
    there = sa.inspect(connection)
    if there.has_table(VERSIONS.name):
        row = connection.execute(sa.select(VERSIONS.c.number, VERSIONS.c.made_by)).first()
        if row is not None:
            return StoreVersion(*row)
    if not there.has_table(JOBS.name):
        return None
    columns = {column["name"] for column in there.get_columns(JOBS.name)}
    ours = set(JOBS.columns.keys())
    if columns == ours:
        return None
    later = {column.name for column in JOBS.columns if column.server_default is not None}
    return StoreVersion(1 if columns == ours - later else UNKNOWN)
