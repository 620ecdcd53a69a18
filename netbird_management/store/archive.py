"""Backup and restore: everything of a store, with its key, in one compressed file of JSON lines.

The file says nothing of the database it came from, so it may be restored into the other kind. It was read in one
transaction for each part, while management may go on; it opens every secret, so guard it like the store itself.
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
from netbird_management.store.holding import held_store
from netbird_management.store.schema import Part, migrate, tables, versions

FORMAT: Final = 1
_ROWS: Final = 1_000
Progress = Callable[[str, int, int], None]
"""Told the table, how many rows are done, and how many there are (0: not known)."""


def quiet(_table: str, _done: int, _total: int) -> None:
    """Progress for nobody."""


async def write_archive(directory: Path, url: str, target: Path, progress: Progress = quiet) -> int:
    """How many rows were written to `target`, which must not exist yet. The store stays at the version that it has.

    Raises `StoreError`.
    """
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
    """Fills an empty store from a backup, and brings it to this version; how many rows it has. Raises `StoreError`.

    A store that has an account already is left alone. The key is written last, so that nothing starts on half of a
    backup, whatever ended this.
    """
    with gzip.open(source, "rt", encoding="utf-8") as file:
        lines = _lines(file)
        head = next(lines, {})
        if head.get("format") != FORMAT:
            raise ArchiveError(f"{source} is not a backup of this format")
        if (directory / KEY_FILE).exists() or (directory / DATABASE_FILE).exists():
            raise ArchiveError(f"{directory} has a store already: restore into an empty directory")
        make_directory(directory)
        async with held_store(directory, url):
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
    connection: Connection, part: Part, lines: Iterator[dict[str, Any]], line: dict[str, Any], progress: Progress
) -> tuple[int, dict[str, Any]]:
    """Reads from `line` until the other part begins; the line that said so is given back."""
    known = {table.name: table for table in tables(connection, part)}
    if "accounts" in known and connection.scalar(select(func.count()).select_from(known["accounts"])):
        raise ArchiveError("the database has an account already: restore into an empty one")
    rows = 0
    while line.get("part") == part:
        if line["table"] not in known:
            raise ArchiveError(f"the backup has a table {line['table']} that its version does not know")
        table = known[line["table"]]
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
    found: dict[str, Any] = {}
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
        found[column.name] = value
    return found


def _lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    """Raises `ArchiveError`."""
    try:
        for text in file:
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ArchiveError("the backup is damaged")
            yield found
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ArchiveError("the backup is cut short or damaged") from error
