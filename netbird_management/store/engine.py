"""The database engine: how SQLite must be spoken to, and the migrations."""

import logging
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DATABASE_FILE = "management.db"


def open_engine(database: Path) -> AsyncEngine:
    """An engine on a SQLite file. Connections made with the option `writes=True` take the write lock when they begin.

    The driver's own transaction handling is off: it begins late and commits before DDL, which would break both
    `BEGIN IMMEDIATE` and transactional migrations.
    """
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}")

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


async def migrate(engine: AsyncEngine) -> None:
    """Brings the schema to the newest version, in one transaction. Raises what Alembic raises, changing nothing."""

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its dialect at each start

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with engine.execution_options(writes=True).begin() as connection:
        await connection.run_sync(upgrade)
