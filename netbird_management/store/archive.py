"""Backup and restore of a whole store, with its key, in one compressed file of JSON lines.

The file does not depend on the kind of database, so a backup of SQLite can be restored into PostgreSQL and vice versa.
A backup reads each part in one transaction, while management may keep running. The file contains the key to every
secret, so it needs the same protection as the store.
"""

import base64
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from sqlalchemy import JSON, Connection, Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from netbird_management.model.store_errors import ArchiveError
from netbird_management.secrets.vault import KEY_FILE, Vault
from netbird_management.store.directory import make_directory
from netbird_management.store.engine import DATABASE_FILE, LOG_FILE, Engines, open_engines, open_unmigrated
from netbird_management.store.holding import locked_store
from netbird_management.store.schema import Part, migrate, tables, versions

FORMAT: Final = 1
_ROWS: Final = 1_000
# Called with the table, the number of processed rows, and the total number of rows (0 if unknown).
Progress = Callable[[str, int, int], None]


def quiet(_table: str, _done: int, _total: int) -> None:
    """Reports no progress."""


async def write_archive(directory: Path, url: str, target: Path, progress: Progress = quiet) -> int:
    """Writes a backup to `target`, which must not exist, and returns the number of rows. The store's version does not
    change.

    Raises `StoreError`.
    """
    Vault.load(directory)
    key = (directory / KEY_FILE).read_bytes()
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ArchiveError(f"{target} already exists") from error
    try:
        with ExitStack() as files:
            raw = files.enter_context(os.fdopen(descriptor, "wb"))
            file = files.enter_context(gzip.open(raw, "wt", encoding="utf-8"))
            async with open_unmigrated(directory, url) as engines:
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
    """Fills an empty store from a backup, migrates it to this version, and returns the number of rows.

    The key is written last, so management cannot start on a partly restored store. Raises `StoreError`, also for a
    store that already contains an account; such a store is not changed.
    """
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = _lines(file)
        head = next(lines, {})
        if head.get("format") != FORMAT:
            raise ArchiveError(f"{source} is not a backup of this format")
        if (directory / KEY_FILE).exists() or (directory / DATABASE_FILE).exists():
            raise ArchiveError(f"{directory} already contains a store: restore into an empty directory")
        make_directory(directory)
        async with locked_store(directory, url):
            try:
                rows = await _fill(lines, head, directory, url, progress)
                Vault.create(directory, base64.b64decode(head["key"]))
            except BaseException:
                for name in (DATABASE_FILE, LOG_FILE):
                    for suffix in ("", "-wal", "-shm"):
                        (directory / (name + suffix)).unlink(missing_ok=True)
                raise
    return rows


async def _fill(
    lines: Iterator[dict[str, Any]], head: dict[str, Any], directory: Path, url: str, progress: Progress
) -> int:
    async with open_unmigrated(directory, url) as engines:
        for part, engine in _parts(engines):
            await migrate(engine, part, revision=head[part])
        rows = 0
        line = next(lines, {})
        async with AsyncExitStack() as transactions:
            opened = {
                engine: await transactions.enter_async_context(engine.execution_options(writes=True).begin())
                for engine in {engines.accounts, engines.log}
            }
            for part, engine in _parts(engines):
                done, line = await opened[engine].run_sync(_read_part, part, lines, line, progress)
                rows += done
            if line.get("end") != rows or next(lines, None) is not None:
                raise ArchiveError("the backup is cut short or damaged")
    async with open_engines(directory, url):
        return rows


def _parts(engines: Engines) -> tuple[tuple[Part, AsyncEngine], tuple[Part, AsyncEngine]]:
    return ("accounts", engines.accounts), ("log", engines.log)


def _write_part(connection: Connection, part: Part, file: IO[str], progress: Progress) -> int:
    rows = 0
    for table in tables(connection, part):
        total = connection.scalar(select(func.count()).select_from(table)) or 0
        file.write(json.dumps({"part": part, "table": table.name, "rows": total}) + "\n")
        result = connection.execution_options(yield_per=_ROWS).execute(select(table))
        for done, row in enumerate(result.mappings(), 1):
            values = {column.name: _packed(column.type, row[column.name]) for column in table.columns}
            file.write(json.dumps(values) + "\n")
            if done % _ROWS == 0:
                progress(table.name, done, total)
        progress(table.name, total, total)
        rows += total
    return rows


def _read_part(
    connection: Connection, part: Part, lines: Iterator[dict[str, Any]], line: dict[str, Any], progress: Progress
) -> tuple[int, dict[str, Any]]:
    """Reads one part, starting at `line`. Returns the number of rows, and the first line of the next part."""
    by_name = {table.name: table for table in tables(connection, part)}
    if "accounts" in by_name and connection.scalar(select(func.count()).select_from(by_name["accounts"])):
        raise ArchiveError("the database already contains an account: restore into an empty database")
    rows = 0
    while line.get("part") == part:
        if line["table"] not in by_name:
            raise ArchiveError(f"the backup contains a table {line['table']} that its version does not define")
        table = by_name[line["table"]]
        total, done = line["rows"], 0
        while done < total:
            batch = [_unpacked(table, next(lines, {})) for _ in range(min(_ROWS, total - done))]
            connection.execute(insert(table), batch)
            done += len(batch)
            progress(table.name, done, total)
        rows += total
        line = next(lines, {})
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
    row: dict[str, Any] = {}
    if values.keys() != {column.name for column in table.columns}:
        raise ArchiveError("the backup is cut short or damaged")
    for column in table.columns:
        value = values[column.name]
        kind = None if value is None or isinstance(column.type, JSON) else column.type.python_type
        if kind is datetime:
            value = datetime.fromisoformat(value)
        elif kind is bytes:
            value = base64.b64decode(value)
        elif kind is bool:
            value = bool(value)
        row[column.name] = value
    return row


def _lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    """The lines of a backup as objects. Raises `ArchiveError`."""
    try:
        for text in file:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ArchiveError("the backup is damaged")
            yield line
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ArchiveError("the backup is cut short or damaged") from error
