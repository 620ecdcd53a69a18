"""One process a store: it answers from memory, and would not hear of what another one changes."""

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
_TRIES: Final = 30
"""Tenths of a second: the server takes a moment to see that a process was killed."""
_ADVISORY_LOCK: Final = 0x6E62_6D67
_log = logging.getLogger(__name__)


@asynccontextmanager
async def held_store(directory: Path, url: str = "") -> AsyncIterator["Hold"]:
    """Keeps a store for this process, however that ends: its directory, and the database of `url` where there is one.

    Raises `InUseError`, `UnreachableError`.
    """
    with _held_directory(directory):
        if not url:
            yield Hold()
            return
        hold = await DatabaseHold.take(url)
        try:
            yield hold
        finally:
            await hold.release()


class Hold:
    """What keeps a store: here the lock of a file, which the kernel lets go of when the process ends."""

    async def watch(self, seconds: float = WATCH_SECONDS) -> None:
        """Until cancelled, or until there is nothing to watch. Raises `InUseError` if the store became another's."""


@contextmanager
def _held_directory(directory: Path) -> Iterator[None]:
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
    """An advisory lock on a PostgreSQL database, as long as a connection lives.

    When the server goes, so does the lock; it is taken again as soon as the server is back. Holders are counted: if
    another one was there in between, what this process has in memory may be old, and `InUseError` ends it.
    """

    def __init__(self, url: str, connection: Any, number: int) -> None:
        self._url = url
        self._connection = connection
        self._number = number

    @classmethod
    async def take(cls, url: str) -> "DatabaseHold":
        """Raises `InUseError`, `UnreachableError`."""
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
        """At once: the server takes a moment to see that a connection has gone."""
        try:
            await self._connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)
        except Exception as error:  # the connection has gone, and the lock with it
            _log.debug("store.released", extra={"error": str(error)})
        finally:
            self._connection.terminate()

    async def watch(self, seconds: float = WATCH_SECONDS) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._connection.execute("SELECT 1")
            except Exception as error:  # the driver has many, and each says that it is not as it was
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
                raise InUseError("another management had the database while it was out of reach: start again")
            return
