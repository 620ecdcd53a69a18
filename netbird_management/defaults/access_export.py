"""The access log as a file of JSON lines, for whoever collects logs: one line an exchange, of every account."""

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
"""How many wait for a slow disk; what comes while so many wait is left out, and counted in the log."""
_log = logging.getLogger(__name__)


class Options(BaseModel):
    """The section `[access_export]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = None
    """Where lines are appended; opened anew when it was moved away. Without it nothing is written."""


class AccessExport:
    """Takes entries as they come and writes them in a task of its own."""

    def __init__(self) -> None:
        self._waiting: list[AccessLogEntry] = []
        self._left_out = 0
        self._some: asyncio.Event | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="appends the access log to a file, as JSON lines", options=Options)

    @hookimpl
    def lifespan(self, management: Management) -> AbstractAsyncContextManager[None] | None:
        file = management.options(Options).file
        return None if file is None else self._writing(file)

    @hookimpl
    def record_access(self, entries: Sequence[AccessLogEntry]) -> None:
        if self._some is None:
            return
        room = WAITING_ENTRIES - len(self._waiting)
        self._waiting += entries[:room]
        self._left_out += len(entries) - len(entries[:room])
        self._some.set()

    @asynccontextmanager
    async def _writing(self, path: Path) -> AsyncIterator[None]:
        """Raises `OSError` for a file that cannot be written. What waits at the end is written before it is left."""
        await asyncio.to_thread(_append, path, b"")
        some = self._some = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(path, some))
            try:
                yield
            finally:
                self._some = None
                some.set()

    async def _run(self, path: Path, some: asyncio.Event) -> None:
        """Until nobody reports any more, and all is written."""
        ended = False
        while not ended:
            await some.wait()
            some.clear()
            ended = self._some is None
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
    told = asdict(entry)
    told["timestamp"] = entry.timestamp.astimezone(UTC).isoformat(timespec="milliseconds")
    return json.dumps({name: value for name, value in told.items() if value not in ("", None, ())}).encode() + b"\n"
