"""Connections that do nothing, and their memory in a proxy.

`python -m bench.idle PORT --count N` opens them, each with one request or upgrade, prints `ready` and holds them until
its input ends. With `--serve PORT` the same process is the upstream of the websockets; its own memory does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench.measure import OTHER_CORE, LoadFailed
from bench.messages import upgrade

AT_ONCE = 64
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def allow_descriptors(count: int) -> int:
    """Raise this process's limit of descriptors, which children inherit; how many it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class _Upgrades(asyncio.Protocol):
    """An upstream that grants every upgrade."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._head = transport, b""

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, separator, _ = self._head.partition(b"\r\n\r\n")
        if not separator:
            return
        self._head = b""
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        key = next(value for name, value in fields.items() if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )


class _Holder(asyncio.Protocol):
    """Sends one request, and keeps the connection after its answer."""

    def __init__(self, request: bytes, status: bytes) -> None:
        self._request, self._status, self._head = request, status, b""
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" in self._head and not self.answered.done():
            if self._head.split(b" ", 2)[1] == self._status:
                self.answered.set_result(None)
            else:
                self.answered.set_exception(LoadFailed(f"an answer was {self._head[:60]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(LoadFailed("a connection ended without an answer"))
            self.answered.exception()


async def hold(port: int, host: str, count: int, *, websockets: bool, serve: int) -> None:
    loop = asyncio.get_running_loop()
    if serve:
        await loop.create_server(_Upgrades, "127.0.0.1", serve, backlog=1024)
    request = upgrade(host) if websockets else f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    print("serving", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    held = []
    for start in range(0, count, AT_ONCE):
        batch = [
            await loop.create_connection(lambda: _Holder(request, b"101" if websockets else b"200"), "127.0.0.1", port)
            for _ in range(min(AT_ONCE, count - start))
        ]
        held += batch
        async with asyncio.timeout(20):
            for _, protocol in batch:
                await protocol.answered
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Holding:
    """A running holder. Its upstream serves from the beginning; `open` makes the connections."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def _line(self) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(180):
            if not await self._process.stdout.readline():
                assert self._process.stderr is not None
                raise LoadFailed((await self._process.stderr.read()).decode().strip().rpartition("\n")[2])

    async def open(self) -> None:
        """Return once every connection had its answer. Raises LoadFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._line()


@asynccontextmanager
async def holding(
    port: int, count: int, *, host: str, websockets: bool = False, serve: int = 0
) -> AsyncIterator[Holding]:
    """Hold `count` connections to a port, on the clients' core, until the context is left."""
    process = await asyncio.create_subprocess_exec(
        "taskset", "-c", str(OTHER_CORE), sys.executable, "-m", "bench.idle", str(port), "--host", host,
        "--count", str(count), "--serve", str(serve), *(["--websockets"] if websockets else []),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    made = Holding(process)
    try:
        await made._line()
        yield made
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--serve", type=int, default=0)
    parser.add_argument("--websockets", action="store_true")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(hold(given.port, given.host, given.count, websockets=given.websockets, serve=given.serve))
