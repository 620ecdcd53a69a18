"""The country of an address: a database in MaxMind's format, reloaded after its file has changed."""

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
"""State of a file: inode, size, time of the last change."""


class GeoUnavailable(Exception):
    """The database cannot be read for this address."""


class Countries:
    """An open database. A context manager. Raises OSError or ValueError for a file that is not a database."""

    def __init__(self, file: Path) -> None:
        # A private copy: truncating a file while it is mapped would end this process.
        with file.open("rb") as source, tempfile.NamedTemporaryFile(prefix="netbird-proxy-geo-") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            copy.flush()
            try:
                self._reader = maxminddb.open_database(copy.name)
            except maxminddb.InvalidDatabaseError as error:
                raise ValueError(f"{file} is no database of addresses: {error}") from error

    def check(self) -> None:
        """Look up some addresses. Raises ValueError for damage that did not show when the file was opened."""
        try:
            for address in _PROBES:
                self._reader.get(address)
        except maxminddb.InvalidDatabaseError as error:
            raise ValueError(f"it is damaged: {error}") from error

    def country(self, address: Address) -> str:
        """Return the country as two capital letters, or "" for an unknown address. Raises GeoUnavailable."""
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
    """A database, reloaded after its file has changed and was stable for one interval.

    If the new file cannot be read, that is logged and the previous database stays in use: a failed update must neither
    open a service nor close it. A context manager; raises the errors of `Countries`.

    Args:
        place: a file, or with `directory` the directory whose last `.mmdb` file by name is the database, as programs
            that date their downloads name them. The directory may be empty or absent; the first file is then loaded
            when it appears, and until then every look-up raises GeoUnavailable.
        interval: seconds between two checks.
    """

    def __init__(self, place: Path, *, interval: float, directory: bool = False) -> None:
        self._place = place
        self._directory = directory
        self._interval = interval
        file = self._current()
        self._stamp = _stamp(file)  # taken before reading, so that a change meanwhile is noticed
        self._read = Countries(file) if file is not None else None

    def country(self, address: Address) -> str:
        """See `Countries.country`."""
        if self._read is None:
            raise GeoUnavailable(f"{self._place} has no database")
        return self._read.country(address)

    def _current(self) -> Path | None:
        if not self._directory:
            return self._place
        try:
            return max(self._place.glob("*.mmdb"), default=None)
        except OSError:
            return None

    async def watch(self) -> None:
        """Check the file every `interval` seconds, until cancelled."""
        previous = self._stamp
        while True:
            await asyncio.sleep(self._interval)
            file = await asyncio.to_thread(self._current)
            stamp = await asyncio.to_thread(_stamp, file)
            if stamp != self._stamp and stamp == previous:
                self._stamp = stamp
                if file is not None:
                    await self._replace(file)
            previous = stamp

    async def _replace(self, file: Path) -> None:
        try:
            read = await asyncio.to_thread(_opened, file)
        except (OSError, ValueError) as error:
            log.warning("access_restrictions.database_kept", file=str(file), error=str(error))
            return
        self._read, old = read, self._read
        if old is not None:
            old.close()  # look-ups are synchronous, so none is using it now
        log.info("access_restrictions.database_replaced", file=str(file), built_at=read.built_at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._read is not None:
            self._read.close()


def _opened(file: Path) -> Countries:
    read = Countries(file)
    try:
        read.check()
    except ValueError:
        read.close()
        raise
    return read


def _stamp(file: Path | None) -> Stamp | None:
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
