"""What a running host can read again: settings, certificates, logs. SIGHUP and a command ask for it; nothing is cut.

Each part that can be read again registers here, and reads its own files. What cannot be used is kept as it was; what
cannot be changed while the process runs is named.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Generic, TypeVar

import structlog
from pydantic import BaseModel

from netbird_host.settings import Settings, differences

M = TypeVar("M", bound=BaseModel)
log = structlog.get_logger("netbird_host.reload")


@dataclass(slots=True)
class ReloadReport:
    """The outcome of one reload, in sentences for the operator."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """What could not be used, and stays as it was."""
    needs_restart: list[str] = field(default_factory=list)
    """Settings that changed and are in force only after a restart."""

    def describe(self) -> dict[str, list[str]]:
        return {"done": self.done, "kept": self.kept, "needs_restart": self.needs_restart}


def summary(report: Mapping[str, Sequence[str]]) -> list[str]:
    """The lines of a described report, for the operator's terminal."""
    names = {"done": "done", "kept": "kept", "needs_restart": "needs a restart"}
    return [f"{names[kind]}: {line}" for kind in names for line in report[kind]] or ["nothing has changed"]


Step = Callable[[ReloadReport], None]
"""Reads one thing again and reports it. Whatever it raises is reported as kept."""


class Reload(Generic[M]):
    """The steps of a reload, and the settings that were read last.

    Attributes:
        settings: those that are in force; a step finds the new ones here.
    """

    def __init__(self, settings: Settings[M], read: Callable[[], Settings[M]], *, reloadable: Collection[str]) -> None:
        """
        Args:
            read: reads all settings again. Raises what says why they cannot be used.
            reloadable: paths of settings, or of sections, that steps put in force.
        """
        self.settings = settings
        self._read = read
        self._reloadable = tuple(reloadable)
        self._steps: list[tuple[str, Step]] = []
        self._running = asyncio.Lock()
        self._asked = asyncio.Event()

    def register(self, name: str, step: Step) -> None:
        """Add a step, which runs after those that are there.

        Args:
            name: what the report calls it where it fails.
        """
        self._steps.append((name, step))

    async def run(self) -> ReloadReport:
        """Read everything again, one reload at a time. Raises nothing."""
        async with self._running:
            report = ReloadReport()
            try:
                new = await asyncio.to_thread(self._read)
            except Exception as error:
                report.kept += [f"settings: {line}" for line in str(error).splitlines()]
            else:
                report.needs_restart += [
                    path
                    for path in differences(self.settings, new)
                    if not any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in self._reloadable)
                ]
                self.settings = new
            for name, step in self._steps:
                try:
                    step(report)
                except Exception as error:
                    report.kept.append(f"{name}: {error}")
            (log.warning if report.kept else log.info)("host.reloaded", **report.describe())
            return report

    def ask(self) -> None:
        """Have `serve` run a reload. Several calls before it runs are one."""
        self._asked.set()

    async def serve(self) -> None:
        """Reload whenever asked, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.run()

    @contextmanager
    def on_hangup(self) -> Iterator[None]:
        """Let SIGHUP ask for a reload while this lasts, and do nothing afterwards. In the main thread.

        The handler is Python's own and not the loop's, which gives the signal back to the system when it closes: the
        process would end of it in its last moments.
        """
        loop = asyncio.get_running_loop()

        def hangup(_number: int, _frame: FrameType | None) -> None:
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(self.ask)

        signal.signal(signal.SIGHUP, hangup)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
