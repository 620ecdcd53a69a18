"""Websocket echoes: a message leaves when the echo before it is whole. `python -m bench.messages URL` prints JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from bench.measure import OTHER_CORE, LoadFailed, Sample, cpu_seconds


def upgrade(host: str) -> bytes:
    """A request for a websocket, without extensions."""
    return (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(size: int) -> bytes:
    """A client's binary message, masked."""
    key = os.urandom(4)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
    return b"\x82" + length + key + bytes(key[i % 4] for i in range(size))


def echoed(size: int) -> int:
    """The bytes of a server's message of this size."""
    return size + (2 if size < 126 else 4)


class Client(asyncio.Protocol):
    """Asks for the upgrade, then plays ping-pong until it is stopped."""

    def __init__(self, host: str, size: int, ended: asyncio.Future[None]) -> None:
        self._host, self._frame, self._expected, self._ended = host, frame(size), echoed(size), ended
        self._head: bytes | None = b""
        self._left = 0
        self.count = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(upgrade(self._host))

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            if not self._head.startswith(b"HTTP/1.1 101"):
                self._fail(f"the upgrade was answered {self._head[:60]!r}")
                return
            self._head = None
        else:
            self._left -= len(data)
            if self._left > 0:
                return
            self.count += 1
        self._left = self._expected
        self._transport.write(self._frame)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("a connection ended")

    def _fail(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(LoadFailed(why))

    def stop(self) -> None:
        self._transport.abort()


async def run(url: str, host: str, size: int, seconds: float, connections: int) -> dict[str, float]:
    """Return the number of messages that came back, and the seconds."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    ended: asyncio.Future[None] = loop.create_future()
    clients = [
        (await loop.create_connection(lambda: Client(host, size, ended), *address))[1] for _ in range(connections)
    ]
    started = loop.time()
    try:
        async with asyncio.timeout(seconds):
            await ended
    except TimeoutError:
        pass
    lasted, count = loop.time() - started, sum(client.count for client in clients)
    ended.cancel()
    for client in clients:
        client.stop()
    return {"count": count, "seconds": lasted}


async def messages(
    pid: int, url: str, *, host: str, size: int, seconds: float, connections: int, prefix: Sequence[str] = ()
) -> Sample:
    """The cost of echoed messages to the process `pid`. Raises LoadFailed."""
    before = cpu_seconds(pid)
    process = await asyncio.create_subprocess_exec(
        *prefix, "taskset", "-c", str(OTHER_CORE), sys.executable, "-m", "bench.messages", url, "--host", host,
        "--size", str(size), "--seconds", str(seconds), "--connections", str(connections),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(seconds + 60):
        output, errors = await process.communicate()
    cpu = cpu_seconds(pid) - before
    if process.returncode or not (counted := json.loads(output))["count"]:
        raise LoadFailed(errors.decode().strip().rpartition("\n")[2] or "no message came back")
    return Sample(counted["count"], counted["seconds"], cpu)


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(run(given.url, given.host, given.size, given.seconds, given.connections))))
