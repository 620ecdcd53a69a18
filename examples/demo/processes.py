"""Child processes: each reports when it is ready, writes its log to a file, and is stopped at the end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ProcessFailed(Exception):
    """A process exited or did not become ready; the message has the end of its log."""


@dataclass(slots=True)
class Process:
    """One child process. Its output goes to the file `log`, line by line, and to `lines`."""

    name: str
    handle: asyncio.subprocess.Process
    log: Path
    lines: list[str] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: asyncio.Task[None] | None = None
    _ended: bool = False

    @property
    def pid(self) -> int:
        return self.handle.pid

    @property
    def running(self) -> bool:
        return self.handle.returncode is None

    async def until_line(self, pattern: str, *, timeout: float = 30.0, start: int = 0) -> re.Match[str]:
        """Wait for the first line from `start` on that matches. Raises ProcessFailed on exit or timeout."""
        expected = re.compile(pattern)
        position = start
        try:
            async with asyncio.timeout(timeout), self._news:
                while True:
                    while position < len(self.lines):
                        if match := expected.search(self.lines[position]):
                            return match
                        position += 1
                    if self._ended:
                        raise ProcessFailed(f"{self.name} ended without saying {pattern!r}:\n{self.tail()}")
                    await self._news.wait()
        except TimeoutError as exc:
            raise ProcessFailed(f"{self.name} did not say {pattern!r} in {timeout:g} s:\n{self.tail()}") from exc

    def kept_waiting(self) -> float:
        """Seconds for which its main thread was ready to run but had no core; 0 if the system does not count them.

        Without these, a measured time does not depend on how busy the machine is.
        """
        try:
            waited = Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]
        except (OSError, IndexError):
            return 0.0
        return int(waited) / 1e9

    def send(self, sign: signal.Signals) -> None:
        self.handle.send_signal(sign)

    def tail(self, count: int = 30) -> str:
        return "\n".join(f"    {line}" for line in self.lines[-count:])

    async def stop(self, *, sign: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Send a signal, wait, and kill the process on timeout. Returns its exit code."""
        if self.running:
            self.handle.send_signal(signal.SIGCONT)  # a paused process would not handle the signal
            self.handle.send_signal(sign)
            try:
                await asyncio.wait_for(self.handle.wait(), timeout)
            except TimeoutError:
                self.handle.kill()
        code = await self.handle.wait()
        if self._reader is not None:
            await self._reader
        return code

    async def _read(self) -> None:
        assert self.handle.stdout is not None
        with self.log.open("a") as log:
            async for raw in self.handle.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                log.write(line + "\n")
                log.flush()
                async with self._news:
                    self.lines.append(line)
                    self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()


class Processes:
    """The child processes of one run, stopped in reverse order of their start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[Process] = []

    async def __aenter__(self) -> Processes:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for process in reversed(self._started):
            await process.stop()

    async def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Process:
        """Start a program, without waiting until it is ready."""
        handle = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment({"PYTHONUNBUFFERED": "1", **(env or {})}),
            limit=1 << 20,
            # A new session, so that Ctrl-C reaches this process only, which stops its children in order.
            start_new_session=True,
        )
        process = Process(name, handle, self.directory / f"{name}.log")
        process._reader = asyncio.Task(process._read(), name=f"log {name}")
        self._started.append(process)
        return process

    async def run(
        self, argv: Sequence[str], *, timeout: float = 60.0, env: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Run a program to its end, and return exit code, output and error output."""
        handle = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(env or {}),
        )
        try:
            output, errors = await asyncio.wait_for(handle.communicate(), timeout)
        except TimeoutError as exc:
            handle.kill()
            await handle.wait()
            raise ProcessFailed(f"{' '.join(argv[:4])} … did not end in {timeout:g} s") from exc
        return handle.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    # Without bytecode files, each of these short-lived processes would compile all its imports.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | dict(more)


BIN = Path(sys.executable).parent
"""The folder of the installed commands."""
