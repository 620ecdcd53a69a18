"""Backup and restore: everything of a store, with its key, in one compressed file of JSON lines.

The file says nothing of the database it came from, so it may be restored into the other kind. It was read in one
transaction for each part, while management may go on; it opens every secret, so guard it like the store itself.
"""

import base64
import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import JSON, Connection, MetaData, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from netbird_management.store.directory import held, prepare_directory
from netbird_management.store.engine import (
    DATABASE_FILE,
    Engines,
    Part,
    held_database,
    migrate,
    open_engine,
    open_engines,
    versions,
)
from netbird_management.store.vault import KEY_FILE, Vault

FORMAT: Final = 1
_ROWS: Final = 1_000
Progress = Callable[[str, int, int], None]
"""Told the table, how many rows are done, and how many there are (0: not known)."""


class ArchiveError(Exception):
    """A file that is no backup, or a place where none can go."""


def quiet(_table: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


async def write_archive(directory: Path, url: str, target: Path, progress: Progress = quiet) -> int:
    """How many rows were written to `target`, which must not exist yet. Raises `ArchiveError`, `VaultError`."""
    Vault.load(directory)
    key = (directory / KEY_FILE).read_bytes()
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ArchiveError(f"{target} is there already") from error
    try:
        with ExitStack() as files:
            raw = files.enter_context(os.fdopen(descriptor, "wb"))
            file = files.enter_context(gzip.open(raw, "wt", encoding="utf-8"))
            async with open_engines(directory, url) as engines:
                head = {"format": FORMAT, "key": base64.b64encode(key).decode()}
                for part, engine in _parts(engines):
                    head[part] = (await versions(engine, part))[0]
                file.write(json.dumps(head) + "\n")
                rows = 0
                for part, engine in _parts(engines):
                    async with engine.connect() as connection:
                        if engine.dialect.name == "postgresql":
                            await connection.execution_options(isolation_level="REPEATABLE READ")
                        rows += await connection.run_sync(_write_part, part, file, progress)
                file.write(json.dumps({"end": rows}) + "\n")
            file.flush()
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException:
        os.unlink(target)
        raise
    return rows


async def read_archive(source: Path, directory: Path, url: str, progress: Progress = quiet) -> int:
    """Fills an empty store from a backup, and brings it to this version; how many rows it has. Raises `ArchiveError`.

    A store that has an account already is left alone. What goes wrong leaves no key behind, so that nothing starts on
    half of a backup.
    """
    with gzip.open(source, "rt", encoding="utf-8") as file:
        head = _line(file.readline())
        if head.get("format") != FORMAT:
            raise ArchiveError(f"{source} is not a backup of this format")
        if (directory / KEY_FILE).exists() or (directory / DATABASE_FILE).exists():
            raise ArchiveError(f"{directory} has a store already: restore into an empty directory")
        prepare_directory(directory)
        with held(directory):
            try:
                async with held_database(url):
                    rows = await _fill(file, head, directory, url, progress)
                key = directory / KEY_FILE
                key.write_bytes(base64.b64decode(head["key"]))
            except BaseException:
                for name in (KEY_FILE, DATABASE_FILE, "access_log.db"):
                    for suffix in ("", "-wal", "-shm"):
                        (directory / (name + suffix)).unlink(missing_ok=True)
                raise
    return rows


async def _fill(file: IO[str], head: dict[str, Any], directory: Path, url: str, progress: Progress) -> int:
    accounts = open_engine(url or directory / DATABASE_FILE)
    log = accounts if url else open_engine(directory / "access_log.db", lasting=False)
    try:
        engines = Engines(accounts, log)
        for part, engine in _parts(engines):
            await migrate(engine, part, revision=head[part])
        rows = 0
        last: dict[str, Any] = {}
        lines = iter(file)
        for part, engine in _parts(engines):
            async with engine.execution_options(writes=True).begin() as connection:
                done, last = await connection.run_sync(_read_part, part, lines, last, progress)
                rows += done
        if last.get("end") != rows:
            raise ArchiveError("the backup is cut short: nothing was restored")
    finally:
        await accounts.dispose()
        await log.dispose()
    async with open_engines(directory, url):
        return rows


def _parts(engines: Engines) -> tuple[tuple[Part, AsyncEngine], tuple[Part, AsyncEngine]]:
    return ("accounts", engines.accounts), ("log", engines.log)


def _tables(connection: Connection, part: Part) -> list[Table]:
    """The tables of a part as they are in the database, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    ours = {"log": {"access_log"}}
    logs = ours["log"]
    return [
        table
        for table in metadata.sorted_tables
        if not table.name.endswith("_version") and (table.name in logs) == (part == "log")
    ]


def _write_part(connection: Connection, part: Part, file: IO[str], progress: Progress) -> int:
    rows = 0
    for table in _tables(connection, part):
        total = connection.scalar(select(func.count()).select_from(table)) or 0
        file.write(json.dumps({"part": part, "table": table.name, "rows": total}) + "\n")
        found = connection.execution_options(yield_per=_ROWS).execute(select(table))
        for done, row in enumerate(found.mappings(), 1):
            values = {column.name: _packed(column.type, row[column.name]) for column in table.columns}
            file.write(json.dumps(values) + "\n")
            if done % _ROWS == 0:
                progress(table.name, done, total)
        progress(table.name, total, total)
        rows += total
    return rows


def _read_part(
    connection: Connection, part: Part, lines: Iterator[str], last: dict[str, Any], progress: Progress
) -> tuple[int, dict[str, Any]]:
    """Reads until the other part begins; the line that said so is given back."""
    tables = {table.name: table for table in _tables(connection, part)}
    if part == "accounts" and connection.scalar(select(func.count()).select_from(tables["accounts"])):
        raise ArchiveError("the database has an account already: restore into an empty one")
    rows = 0
    line = last or _line(next(lines, ""))
    while line.get("part") == part:
        table = tables[line["table"]]
        total, done = line["rows"], 0
        while done < total:
            batch = [_unpacked(table, _line(next(lines, ""))) for _ in range(min(_ROWS, total - done))]
            connection.execute(insert(table), batch)
            done += len(batch)
            progress(table.name, done, total)
        rows += total
        line = _line(next(lines, ""))
    return rows, line


def _packed(kind: object, value: Any) -> Any:
    if value is None or isinstance(kind, JSON):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(bytes(value)).decode()
    return value


def _unpacked(table: Table, values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in table.columns:
        value = values[column.name]
        kind = None if value is None or isinstance(column.type, JSON) else column.type.python_type
        if kind is datetime:
            value = datetime.fromisoformat(value)
        elif kind is bytes:
            value = base64.b64decode(value)
        elif kind is bool:
            value = bool(value)
        found[column.name] = value
    return found


def _line(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArchiveError("the backup is cut short or damaged") from error
    if not isinstance(found, dict):
        raise ArchiveError("the backup is damaged")
    return found
