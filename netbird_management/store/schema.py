"""The schema of a store: its version, and migrations to other versions."""

import logging
from functools import cache
from pathlib import Path
from typing import Final, Literal

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from netbird_management.model.store_errors import NewerStoreError
from netbird_management.store.models import LogRow, Row

Part = Literal["accounts", "log"]
NEWEST: Final = "head"
_SCRIPTS: Final[dict[Part, str]] = {"accounts": "migrations", "log": "log_migrations"}
_VERSIONS: Final[dict[Part, str]] = {"accounts": "alembic_version", "log": "log_version"}
_FORMER_TABLES: Final = {"access_log_entries"}
# Tables of this version and of every earlier one, for `tables` on a store of any version.
_OWN_TABLES: Final[dict[Part, set[str]]] = {
    "accounts": set(Row.metadata.tables) | _FORMER_TABLES,
    "log": set(LogRow.metadata.tables),
}


async def migrate(engine: AsyncEngine, part: Part = "accounts", *, revision: str = NEWEST) -> None:
    """Migrates the schema to a version in one transaction; on an exception of Alembic nothing changes.

    Raises `NewerStoreError` for a store that a later version of this program has migrated.
    """
    current, newest = await versions(engine, part)
    if current == (newest if revision == NEWEST else revision):
        return
    if current not in ("", *_revisions(part)):
        raise NewerStoreError(f"the store ({part}) has version {current}; this program supports up to {newest}")
    try:
        async with engine.execution_options(writes=True, migrates=True).begin() as connection:
            await connection.run_sync(_migrate, part, current, revision)
            if engine.dialect.name == "sqlite":
                broken = (await connection.execute(text("PRAGMA foreign_key_check"))).first()
                if broken is not None:
                    raise LookupError(f"a migration left rows of {broken[0]} that refer to missing rows")
    finally:
        await engine.dispose()  # foreign keys are off in the connection that migrated


async def versions(engine: AsyncEngine, part: Part = "accounts") -> tuple[str, str]:
    """The current version of the schema ("" for none), and the newest version."""
    async with engine.connect() as connection:
        return await connection.run_sync(_version, part), _scripts(part).get_current_head() or ""


def tables(connection: Connection, part: Part) -> list[Table]:
    """Management's tables of a part as they exist in the database; tables that others refer to come first.

    A PostgreSQL database may also contain other programs' tables.
    """
    own = _OWN_TABLES[part] & set(inspect(connection).get_table_names())
    metadata = MetaData()
    metadata.reflect(connection, only=sorted(own), resolve_fks=False)
    return list(metadata.sorted_tables)


def _migrate(connection: Connection, part: Part, current: str, revision: str) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # otherwise it logs its dialect at each start
    config = _config(part)
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _VERSIONS[part]
    older = {step.revision for step in _scripts(part).iterate_revisions(current, "base")} if current else set()
    if revision == "base" or revision in older:
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def _version(connection: Connection, part: Part) -> str:
    if not inspect(connection).has_table(_VERSIONS[part]):
        return ""
    return connection.scalar(text(f"SELECT version_num FROM {_VERSIONS[part]}")) or ""  # noqa: S608 - a name of ours


def _revisions(part: Part) -> set[str]:
    return {step.revision for step in _scripts(part).walk_revisions()}


@cache
def _scripts(part: Part) -> ScriptDirectory:
    return ScriptDirectory.from_config(_config(part))


def _config(part: Part) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / _SCRIPTS[part]))
    return config
