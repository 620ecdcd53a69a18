"""The database engines: how SQLite and PostgreSQL must be spoken to, and the migrations.

On SQLite there are two files, as there is one writer a file: accounts, and the log that nobody waits for. On PostgreSQL
both are in one database.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

DATABASE_FILE: Final = "management.db"
LOG_FILE: Final = "access_log.db"
Part = Literal["accounts", "log"]
_SCRIPTS: Final[dict[Part, str]] = {"accounts": "migrations", "log": "log_migrations"}
_ADVISORY_LOCK: Final = 0x6E62_6D67


class DatabaseInUseError(Exception):
    """Another process answers from this database; it would not hear of what this one changes."""


@dataclass(frozen=True, slots=True)
class Engines:
    accounts: AsyncEngine
    log: AsyncEngine


@asynccontextmanager
async def open_engines(directory: Path, url: str = "") -> AsyncIterator[Engines]:
    """Both engines, migrated. `url` is PostgreSQL's (`postgresql://user@host/name`), "" for files in `directory`."""
    if url:
        accounts = open_engine(url)
        engines = Engines(accounts, accounts)
    else:
        engines = Engines(open_engine(directory / DATABASE_FILE), open_engine(directory / LOG_FILE, lasting=False))
    try:
        await migrate(engines.log, "log")
        await _move_log(engines)
        await migrate(engines.accounts, "accounts")
        yield engines
    finally:
        await engines.accounts.dispose()
        await engines.log.dispose()


def open_engine(database: Path | str, *, lasting: bool = True) -> AsyncEngine:
    """An engine on a SQLite file, or on PostgreSQL by its URL.

    On SQLite, connections made with the option `writes=True` take the write lock when they begin; `lasting` commits
    survive a loss of power, others the end of the process. The driver's own transaction handling is off: it begins
    late and commits before DDL, which would break both `BEGIN IMMEDIATE` and transactional migrations.
    """
    if isinstance(database, str):
        return create_async_engine(make_url(database).set(drivername="postgresql+asyncpg"))
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}")
    pragmas = ("busy_timeout = 5000", "journal_mode = WAL", "foreign_keys = ON")

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (*pragmas, f"synchronous = {'FULL' if lasting else 'NORMAL'}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("migrates", False):
            # Changing a table makes it anew and drops the old one, which would delete all that refers to it. Inside a
            # transaction this could not be switched any more.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")

    return engine


def insert(session: AsyncSession, table: Any) -> Any:
    """An `INSERT` that knows `on_conflict_…`, in the dialect that the session speaks."""
    dialect = session.get_bind().dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@asynccontextmanager
async def held_database(url: str) -> AsyncIterator[None]:
    """Keeps a PostgreSQL database for this process, until it ends however it does; files ("") are kept with their
    directory. Raises `DatabaseInUseError`."""
    if not url:
        yield
        return
    engine = open_engine(url)
    try:
        async with engine.connect() as connection:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            taken = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            if not taken:
                raise DatabaseInUseError("the database is in use by a running management: stop it first")
            yield
    finally:
        await engine.dispose()


async def migrate(engine: AsyncEngine, part: Part = "accounts", *, revision: str = "head") -> None:
    """Brings the schema to a version, in one transaction. Raises what Alembic raises, changing nothing.

    Connections of the engine that are open are closed afterwards.
    """
    try:
        async with engine.execution_options(writes=True, migrates=True).begin() as connection:
            await connection.run_sync(_migrate, part, revision)
            if engine.dialect.name == "sqlite":
                broken = (await connection.execute(text("PRAGMA foreign_key_check"))).first()
                if broken is not None:
                    raise LookupError(f"a migration left {broken[0]} referring to what is not there")
    finally:
        await engine.dispose()  # their foreign keys are off


async def versions(engine: AsyncEngine, part: Part = "accounts") -> tuple[str, str]:
    """The version of the schema as it is ("" for none), and the newest one."""
    newest = ScriptDirectory.from_config(_config(part)).get_current_head() or ""
    table = _version_table(part)

    def current(connection: Connection) -> str:
        if not inspect(connection).has_table(table):
            return ""
        return connection.scalar(text(f"SELECT version_num FROM {table}")) or ""  # noqa: S608 - a name of ours

    async with engine.connect() as connection:
        return await connection.run_sync(current), newest


def _migrate(connection: Connection, part: Part, revision: str) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its dialect at each start
    config = _config(part)
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _version_table(part)
    if revision == "head" or not _is_older(connection, part, revision):
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def _is_older(connection: Connection, part: Part, revision: str) -> bool:
    """Whether a revision lies before the schema's."""
    if revision == "base":
        return True
    table = _version_table(part)
    if not inspect(connection).has_table(table):
        return False
    current = connection.scalar(text(f"SELECT version_num FROM {table}"))  # noqa: S608 - a name of ours
    if not current:
        return False
    script = ScriptDirectory.from_config(_config(part))
    return revision in {step.revision for step in script.iterate_revisions(current, "base")}


def _config(part: Part) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / _SCRIPTS[part]))
    return config


def _version_table(part: Part) -> str:
    return "alembic_version" if part == "accounts" else "log_version"


async def _move_log(engines: Engines) -> None:
    """Earlier versions kept the access log among the accounts; it moves once, before that table is dropped."""
    columns = (
        "id, account_id, service_id, timestamp, source_ip, method, host, path, duration_ms, status_code, reason, "
        "user_id, auth_method, bytes_upload, bytes_download, protocol, details, user_groups"
    )
    async with engines.accounts.connect() as connection:
        if not await connection.run_sync(lambda sync: inspect(sync).has_table("access_log_entries")):
            return
    copy = f"INSERT INTO access_log ({columns}) SELECT {columns} FROM {{}}access_log_entries WHERE true "  # noqa: S608
    copy += "ON CONFLICT DO NOTHING"
    if engines.log is engines.accounts:
        async with engines.accounts.begin() as connection:
            await connection.execute(text(copy.format("")))
        return
    async with engines.log.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        if raw is None:
            raise LookupError("no connection to the access log")
        await connection.rollback()
        await raw.execute("ATTACH DATABASE ? AS accounts", (engines.accounts.url.database,))
        try:
            await raw.execute(copy.format("accounts."))
            await raw.commit()
        finally:
            await raw.execute("DETACH DATABASE accounts")
