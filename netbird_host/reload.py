"""Reload of settings, certificates and log files in a running host, on SIGHUP or a command; connections stay open.

Each part of the host that supports a reload registers a step, which reads its own files. A step whose new input cannot
be used keeps the old; settings that take effect only after a restart are reported.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Generic, Protocol, TypeVar

import structlog
from pydantic import BaseModel

from netbird_host import logs
from netbird_host.settings import Settings, differences

M = TypeVar("M", bound=BaseModel)
log = structlog.get_logger("netbird_host.reload")


@dataclass(slots=True)
class ReloadReport:
    """The outcome of one reload, in sentences for the operator."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Parts whose new input could not be used, so that the old stays in force."""
    needs_restart: list[str] = field(default_factory=list)
    """Settings that changed, but take effect only after a restart."""

    def describe(self) -> dict[str, list[str]]:
        return {"done": self.done, "kept": self.kept, "needs_restart": self.needs_restart}


def summary(report: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines for the operator's terminal from the result of `ReloadReport.describe`."""
    names = {"done": "done", "kept": "kept", "needs_restart": "needs a restart"}
    return [f"{names[kind]}: {line}" for kind in names for line in report[kind]] or ["nothing has changed"]


Step = Callable[[ReloadReport], None]
"""Reads one part again and reports the outcome. An exception is reported under `kept`."""


class LogSettings(Protocol):
    """The section `log`, which both hosts have."""

    @property
    def level(self) -> logs.Level: ...

    @property
    def format(self) -> logs.Format: ...


class Reload(Generic[M]):
    """The steps of a reload, and the settings as last read.

    Attributes:
        settings: the settings in force; already the new ones when steps run.
    """

    def __init__(self, settings: Settings[M], read: Callable[[], Settings[M]], *, reloadable: Collection[str]) -> None:
        """
        Args:
            read: reads all settings again. Raises an exception whose message says why they cannot be used.
            reloadable: paths of the settings, or of the sections, that steps put into force.
        """
        self.settings = settings
        self._read = read
        self._reloadable = tuple(reloadable)
        self._steps: list[tuple[str, Step]] = []
        self._running = asyncio.Lock()
        self._asked = asyncio.Event()

    def register(self, name: str, step: Step) -> None:
        """Add a step, which runs after those registered before it.

        Args:
            name: the step's name in the report if it fails.
        """
        self._steps.append((name, step))

    def register_log(self, section: Callable[[M], LogSettings]) -> None:
        """Add the step that puts a changed level or format of the log into force.

        Args:
            section: returns the section `log` of the settings.
        """
        log = section(self.settings.value)

        def reload_log(report: ReloadReport) -> None:
            nonlocal log
            now = section(self.settings.value)
            if now != log:
                logs.configure(now.level, now.format)
                log = now
                report.done.append(f"log: level {now.level}, format {now.format}")

        self.register("log", reload_log)

    async def run(self) -> ReloadReport:
        """Run one reload; concurrent calls wait for each other. Never raises."""
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
            if report.kept:
                log.warning("host.reloaded", **report.describe())
            else:
                log.info("host.reloaded", **report.describe())
            return report

    def ask(self) -> None:
        """Request a reload, which `serve` runs. Several requests before it runs count as one."""
        self._asked.set()

    async def serve(self) -> None:
        """Run requested reloads, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.run()

    @contextmanager
    def on_hangup(self) -> Iterator[None]:
        """Let SIGHUP request a reload until the context is left; afterwards SIGHUP is ignored. Main thread only.

        The handler is installed with `signal.signal` and not with the loop: a closing loop restores the default action,
        so that a SIGHUP in the last moments would kill the process.
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
