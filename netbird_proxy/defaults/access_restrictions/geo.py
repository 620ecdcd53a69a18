"""Where an address is: a database in MaxMind's format, and another one once its file is another."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import maxminddb
import structlog

from netbird_proxy.defaults.access_restrictions.networks import Address

log = structlog.get_logger("netbird_proxy.access_restrictions")

_PROBES = tuple(f"{first}.{first}.0.1" for first in range(1, 224))
Stamp = tuple[int, int, int]
"""What tells one state of a file from another: inode, size, time of the last change."""


class GeoUnavailable(Exception):
    """The database cannot tell."""


class Countries:
    """An open database. A context manager; `OSError` or `ValueError` for a file that is none."""

    def __init__(self, file: Path) -> None:
        # A copy that is ours alone: a file that somebody cuts off while it is mapped would end this process.
        with file.open("rb") as source, tempfile.NamedTemporaryFile(prefix="netbird-proxy-geo-") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            try:
                self._reader = maxminddb.open_database(copy.name)
            except maxminddb.InvalidDatabaseError as error:
                raise ValueError(f"{file} is no database of addresses: {error}") from error

    def check(self) -> None:
        """Look here and there. Raises `ValueError` for damage that opening it did not show."""
        try:
            for address in _PROBES:
                self._reader.get(address)
        except maxminddb.InvalidDatabaseError as error:
            raise ValueError(f"it is damaged: {error}") from error

    def country(self, address: Address) -> str:
        """Two capital letters, or "" for an address that it does not know. Raises GeoUnavailable."""
        try:
            record = self._reader.get(address)
        except (maxminddb.InvalidDatabaseError, ValueError) as error:  # ValueError: an IPv6 address, an IPv4 database
            raise GeoUnavailable(str(error)) from error
        match record:
            case {"country": {"iso_code": str(code)}}:
                return code.upper()
        return ""

    @property
    def built_at(self) -> int:
        """Seconds since the epoch, as the database says."""
        return self._reader.metadata().build_epoch

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class WatchedCountries:
    """The database of a file, read anew when the file is another and has been so for one look.

    What cannot be read is logged, and the last good one stays: an update that fails must neither open a service nor
    close it. A context manager that opens it, with the errors of `Countries`.
    """

    def __init__(self, file: Path, *, interval: float) -> None:
        self._file = file
        self._interval = interval
        self._stamp = _stamp(file)  # before it is read: what changes meanwhile is read again
        self._read = Countries(file)

    def country(self, address: Address) -> str:
        """See `Countries.country`."""
        return self._read.country(address)

    async def watch(self) -> None:
        """Look every `interval` seconds, until cancelled."""
        seen = self._stamp
        while True:
            await asyncio.sleep(self._interval)
            stamp = await asyncio.to_thread(_stamp, self._file)
            if stamp != self._stamp and stamp == seen:
                self._stamp = stamp
                await self._replace()
            seen = stamp

    async def _replace(self) -> None:
        try:
            read = await asyncio.to_thread(_opened, self._file)
        except (OSError, ValueError) as error:
            log.warning("access_restrictions.database_kept", file=str(self._file), error=str(error))
            return
        self._read, old = read, self._read
        old.close()  # look-ups do not wait in the middle: nobody uses it any more
        log.info("access_restrictions.database_replaced", file=str(self._file), built_at=read.built_at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._read.close()


def _opened(file: Path) -> Countries:
    read = Countries(file)
    try:
        read.check()
    except ValueError:
        read.close()
        raise
    return read


def _stamp(file: Path) -> Stamp | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
