"""Where an address is: a database in MaxMind's format, read once at the start."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import maxminddb

from netbird_proxy.defaults.access_restrictions.networks import Address


class GeoUnavailable(Exception):
    """The database cannot tell."""


class Countries:
    """An open database. A context manager; `OSError` or `ValueError` for a file that is none."""

    def __init__(self, file: Path) -> None:
        try:
            self._reader = maxminddb.open_database(file)
        except maxminddb.InvalidDatabaseError as error:
            raise ValueError(f"{file} is no database of addresses: {error}") from error

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.close()
