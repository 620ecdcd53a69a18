"""A proxy of several workers as real processes, and what tests ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from examples.demo.processes import BIN, Processes
from tests.e2e.alone import Alone, written


@asynccontextmanager
async def workers(
    directory: Path, mappings: str, count: int = 2, *, extra: str = "", env: Mapping[str, str] | None = None
) -> AsyncIterator[Alone]:
    """A proxy of several workers, all of them ready."""
    async with Processes(directory / "logs") as processes:
        config, file, port = written(directory, mappings, extra=extra)
        process = await processes.start("proxy", command(config, count), env=env)
        await process.until_line(r"workers\.ready", timeout=60)
        yield Alone(process, config, file, port)


def command(config: Path, count: int) -> list[str]:
    return [str(BIN / "netbird-proxy"), "run", "--config", str(config), "--workers", str(count)]


async def state(directory: Path) -> dict[str, Any]:
    """Return the parent's report on all workers, from its admin socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(directory / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        answer: dict[str, Any] = (await client.get("http://proxy/state")).json()
        return answer


async def pids(directory: Path) -> list[int]:
    """The workers' processes by their numbers; 0 where none runs now."""
    return [worker["pid"] or 0 for worker in (await state(directory))["workers"]]


async def ask(port: int, host: str = "app.example.com") -> int:
    """The status of a request on a connection of its own; 0 if the connection ends without an answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    except ConnectionResetError:
        return 0
    return int(answer[9:12] or 0)


def connections(pid: int, port: int) -> int:
    """Return the number of established connections to a local port that a process has accepted."""
    established = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port
    }
    links = (link for link in Path(f"/proc/{pid}/fd").iterdir())
    return sum(_target(link) in {f"socket:[{inode}]" for inode in established} for link in links)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def runs(pid: int) -> bool:
    """A process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The child processes of all threads of a process."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
