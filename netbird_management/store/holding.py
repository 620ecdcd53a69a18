"""Exclusive use of a store by one process, as it answers from memory and would not notice another process's changes."""

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]

from netbird_management.model.store_errors import InUseError, UnreachableError
from netbird_management.store.engine import connect

LOCK_FILE: Final = "management.lock"
WATCH_SECONDS: Final = 5.0
# Attempts to take the lock, 0.1 s apart, as the server needs time to notice that a process was killed.
_TRIES: Final = 30
_ADVISORY_LOCK: Final = 0x6E62_6D67
_log = logging.getLogger(__name__)


@asynccontextmanager
async def locked_store(directory: Path, url: str = "") -> AsyncIterator["Hold"]:
    """Locks a store for this process: its directory, and the database at `url` unless that is "". The lock ends with
    the process at the latest.

    Raises `InUseError`, `UnreachableError`.
    """
    with _locked_directory(directory):
        if not url:
            yield Hold()
            return
        hold = await DatabaseHold.take(url)
        try:
            yield hold
        finally:
            await hold.release()


class Hold:
    """A lock on a store. This base class is the lock on a file, which the kernel releases when the process ends."""

    async def watch(self, seconds: float = WATCH_SECONDS) -> None:
        """Watches the lock every `seconds` until cancelled; returns at once if the lock cannot be lost. Raises
        `InUseError` if another process took the store."""


@contextmanager
def _locked_directory(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(f"{directory} is in use by a running management: stop it first") from error
        yield
    finally:
        os.close(descriptor)


class DatabaseHold(Hold):
    """An advisory lock on a PostgreSQL database, which lasts as long as its connection.

    When the server stops, the lock is lost; `watch` takes it again as soon as the server is back. The database counts
    the holders. If another process took the lock in between, this process's memory may be out of date, and
    `InUseError` ends it.
    """

    def __init__(self, url: str, connection: Any, number: int) -> None:
        self._url = url
        self._connection = connection
        self._number = number

    @classmethod
    async def take(cls, url: str) -> "DatabaseHold":
        """Takes the lock. Raises `InUseError`, `UnreachableError`."""
        connection = await connect(url)
        try:
            for _ in range(_TRIES):
                if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _ADVISORY_LOCK):
                    await connection.execute("CREATE SEQUENCE IF NOT EXISTS holders")
                    return cls(url, connection, await connection.fetchval("SELECT nextval('holders')"))
                await asyncio.sleep(0.1)
            raise InUseError("the database is in use by a running management: stop it first")
        except BaseException:
            connection.terminate()
            raise

    async def release(self) -> None:
        """Releases the lock explicitly, as the server would notice only later that the connection ended."""
        try:
            await self._connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)
        except Exception as error:  # the connection ended, and the lock with it
            _log.debug("store.released", extra={"error": str(error)})
        finally:
            self._connection.terminate()

    async def watch(self, seconds: float = WATCH_SECONDS) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._connection.execute("SELECT 1")
            except Exception as error:  # any of the driver's many errors means that the lock may be lost
                _log.warning("store.lost", extra={"error": str(error)})
                self._connection.terminate()
                await self._take_again(seconds)
                _log.warning("store.held_again")

    async def _take_again(self, seconds: float) -> None:
        while True:
            try:
                again = await DatabaseHold.take(self._url)
            except (UnreachableError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.sleep(seconds)
                continue
            before, self._number, self._connection = self._number, again._number, again._connection
            if self._number != before + 1:
                raise InUseError("another management used the database while it was unreachable: start again")
            return
