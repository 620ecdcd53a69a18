"""The database engines for SQLite and PostgreSQL.

SQLite permits one writer per file, so accounts and the access log are in two files, and no change waits for the log. On
PostgreSQL both are in one database.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from netbird_management.model.store_errors import UnreachableError
from netbird_management.store.schema import Part, migrate, versions

DATABASE_FILE: Final = "management.db"
LOG_FILE: Final = "access_log.db"
# Maximum time to connect; on expiry `UnreachableError`.
CONNECT_SECONDS: Final = 10.0
# Maximum time of a statement; on expiry it fails. Writes run one at a time, so all of them would wait for it.
STATEMENT_SECONDS: Final = 60.0


class SqliteConnection(sqlite3.Connection):
    """A SQLite connection that ends its transaction when it is closed.

    SQLite itself ends the transaction only after every statement is finalized. The statement of a cancelled call is
    finalized by garbage collection, seconds or minutes after its connection was closed; until then no other connection
    could write.
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


@dataclass(frozen=True, slots=True)
class Engines:
    accounts: AsyncEngine
    log: AsyncEngine


@asynccontextmanager
async def open_engines(directory: Path, url: str = "") -> AsyncIterator[Engines]:
    """Both engines, after migration. `url` is PostgreSQL's (`postgresql://user@host/name`), "" for files in
    `directory`.

    Raises `StoreError`.
    """
    async with open_unmigrated(directory, url) as engines:
        await migrate(engines.log, "log")
        await _move_log(engines)
        await migrate(engines.accounts, "accounts")
    async with _opened(directory, url) as engines:
        yield engines


@asynccontextmanager
async def open_unmigrated(directory: Path, url: str = "") -> AsyncIterator[Engines]:
    """Both engines, without migration and without a time limit for statements. Raises `UnreachableError`."""
    async with _opened(directory, url, patient=True) as engines:
        if url:
            await (await connect(url)).close()
        yield engines


async def is_outdated(directory: Path, url: str = "") -> bool:
    """True if opening this store would migrate it; only the process that holds the store may. Raises
    `UnreachableError`."""
    async with open_unmigrated(directory, url) as engines:
        parts: tuple[tuple[AsyncEngine, Part], ...] = ((engines.accounts, "accounts"), (engines.log, "log"))
        for engine, part in parts:
            current, newest = await versions(engine, part)
            if current != newest:
                return True
    return False


@asynccontextmanager
async def _opened(directory: Path, url: str, *, patient: bool = False) -> AsyncIterator[Engines]:
    if url:
        accounts = open_engine(url, patient=patient)
        engines = Engines(accounts, accounts)
    else:
        engines = Engines(open_engine(directory / DATABASE_FILE), open_engine(directory / LOG_FILE, lasting=False))
    try:
        yield engines
    finally:
        await engines.accounts.dispose()
        await engines.log.dispose()


def open_engine(database: Path | str, *, lasting: bool = True, patient: bool = False) -> AsyncEngine:
    """An engine on a SQLite file, or on PostgreSQL by its URL, which supports the options of libpq's URLs.

    On PostgreSQL a statement fails after `STATEMENT_SECONDS`, unless `patient` is set.
    On SQLite, connections made with the option `writes=True` take the write lock when their transaction begins.
    `lasting` commits survive a loss of power; others survive only the end of the process. The driver's own transaction
    handling is disabled: it begins late and commits before DDL, which would break both `BEGIN IMMEDIATE` and
    transactional migrations.
    """
    if isinstance(database, str):

        async def creator() -> Any:
            return await connect(database, patient=patient)

        # The pool tests each connection before use, so a restart of the server does not fail a call.
        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=creator, pool_pre_ping=True, hide_parameters=True
        )
        event.listen(engine.sync_engine, "handle_error", _without_values)
        return engine
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{database}", connect_args={"factory": SqliteConnection}, hide_parameters=True
    )
    event.listen(engine.sync_engine, "handle_error", _without_values)
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
            # Changing a table copies it and drops the original, which would delete all rows that refer to it. The
            # pragma has no effect inside a transaction, so it must come first.
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")

    return engine


def _without_values(context: ExceptionContext) -> None:
    """Removes the values of a failed statement from its error, as errors are logged. Error details quote whole rows or
    single values, which may be hashes, credentials and addresses."""
    original = context.original_exception
    cause = original.__cause__ or original
    if isinstance(cause, asyncpg.PostgresError | asyncpg.InterfaceError):
        cause.detail = None
    if isinstance(cause, asyncpg.DataError | TypeError | ValueError):
        for error in (cause, original, context.sqlalchemy_exception):
            if error is not None:
                error.args = (type(cause).__name__,)


def insert(session: AsyncSession, table: Any) -> Any:
    """An `INSERT` that supports `on_conflict_…`, in the session's dialect."""
    dialect = session.get_bind().dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def is_away(error: BaseException) -> bool:
    """True if the database failed and not the statement, so the same statement may succeed later."""
    if isinstance(error, UnreachableError | OSError):
        return True
    return isinstance(error, DBAPIError) and (error.connection_invalidated or isinstance(error, OperationalError))


async def connect(url: str, *, patient: bool = False) -> Any:
    """A connection of the PostgreSQL driver. Raises `UnreachableError`."""
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_SECONDS,
            command_timeout=None if patient else STATEMENT_SECONDS,
            server_settings={"application_name": "netbird-management"},
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        raise UnreachableError(f"database: {error or type(error).__name__}") from error


async def _move_log(engines: Engines) -> None:
    """Copies the access log, which earlier versions kept in the accounts' database, before that table is dropped."""
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
