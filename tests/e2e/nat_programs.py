"""Programs in the namespaces of `nat_networks`: servers, and nodes whose reports are read."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e.nat_networks import ROOT

SECONDS = 60
"""Maximum time of any step."""


def script(name: str) -> str:
    """Return the path of a command of this environment."""
    return str(Path(sys.executable).with_name(name))


@asynccontextmanager
async def program(argv: list[str], ready: str) -> AsyncIterator[Process]:
    """Run a program, from its line that begins with `ready` on."""
    process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while not (line := await process.stdout.readline()).startswith(ready.encode()):
                assert line, f"{argv[-1]} ended before it was ready"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class NodeProcess:
    """A node in its site, and what it reported."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.messages: list[dict[str, Any]] = []
        self._news = asyncio.Event()

    async def read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.messages.append(json.loads(line))
            self._news.set()

    def get(self, size: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"get %d\n" % size)

    def of(self, kind: str) -> list[Any]:
        return [message[kind] for message in self.messages if kind in message]

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for a report that makes the predicate true."""
        async with asyncio.timeout(SECONDS):
            while not predicate():
                assert not self.of("error"), self.messages
                self._news.clear()
                await self._news.wait()

    async def until_path(self, kind: str) -> None:
        await self.until(lambda: self.of("path")[-1:] == [kind])


@asynccontextmanager
async def reading(*nodes: NodeProcess) -> AsyncIterator[None]:
    """Read what the nodes report, for the time of the context."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.read()) for node in nodes]
        yield
        for task in tasks:
            task.cancel()
