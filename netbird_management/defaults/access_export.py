"""The access log of all accounts as a file of JSON lines, one for each exchange, for log collectors."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from datetime import UTC
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from netbird_management import AccessLogEntry, Management, PluginInfo, hookimpl

WAITING_ENTRIES: Final = 10_000
"""Maximum number of entries that wait for the disk; further ones are omitted, and the log reports their number."""
_log = logging.getLogger(__name__)


class Options(BaseModel):
    """The section `[access_export]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = None
    """File to append lines to; created again after a rotation moves it away. Without it, nothing is written."""


class AccessExport:
    """Queues entries and appends them to the file in a background task."""

    def __init__(self) -> None:
        self._waiting: list[AccessLogEntry] = []
        self._left_out = 0
        self._arrived: asyncio.Event | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="appends the access log to a file, as JSON lines", options=Options)

    @hookimpl
    def lifespan(self, management: Management) -> AbstractAsyncContextManager[None] | None:
        file = management.options(Options).file
        return None if file is None else self._writing(file)

    @hookimpl
    def record_access(self, entries: Sequence[AccessLogEntry]) -> None:
        if self._arrived is None:
            return
        room = WAITING_ENTRIES - len(self._waiting)
        self._waiting += entries[:room]
        self._left_out += len(entries) - len(entries[:room])
        self._arrived.set()

    @asynccontextmanager
    async def _writing(self, path: Path) -> AsyncIterator[None]:
        """Runs the background task; on exit, it first writes the entries that wait. Raises `OSError` if the file cannot
        be written."""
        await asyncio.to_thread(_append, path, b"")
        arrived = self._arrived = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(path, arrived))
            try:
                yield
            finally:
                self._arrived = None
                arrived.set()

    async def _run(self, path: Path, arrived: asyncio.Event) -> None:
        """Writes entries until the plugin ends and none wait."""
        ended = False
        while not ended:
            await arrived.wait()
            arrived.clear()
            ended = self._arrived is None
            await self._write(path)

    async def _write(self, path: Path) -> None:
        while self._waiting:
            entries, self._waiting = self._waiting, []
            left_out, self._left_out = self._left_out, 0
            if left_out:
                _log.warning("access_export.left_out", extra={"entries": left_out})
            try:
                await asyncio.to_thread(_append, path, b"".join(map(_line, entries)))
            except OSError as error:
                _log.error("access_export.failed", extra={"entries": len(entries), "error": str(error)})


def _append(path: Path, lines: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(lines)


def _line(entry: AccessLogEntry) -> bytes:
    fields = asdict(entry)
    fields["timestamp"] = entry.timestamp.astimezone(UTC).isoformat(timespec="milliseconds")
    return json.dumps({name: value for name, value in fields.items() if value not in ("", None, ())}).encode() + b"\n"
