"""Nodes in one process over loopback, and protocols that record their calls, for tests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from netbird_overlay.driver import Driver, open_socket
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.members import Member
from netbird_overlay.node import Node

LOOPBACK = "127.0.0.1"


class Recorder(asyncio.Protocol):
    """A protocol that records the calls of its transport.

    Attributes:
        calls: names of the calls in order, equal neighbors once: `made`, `data`, `eof`, `pause`, `resume`, `lost`.
        keep_open: the result of `eof_received`.
        echo: write received data back.
    """

    def __init__(self, *, keep_open: bool = False, echo: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.calls: list[str] = []
        self.received = bytearray()
        self.keep_open, self.echo = keep_open, echo
        self.made: asyncio.Future[asyncio.Transport] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.writable = asyncio.Event()
        self.writable.set()
        self.paused = asyncio.Event()
        self._grown = asyncio.Event()

    @property
    def transport(self) -> asyncio.Transport:
        return self.made.result()

    async def has(self, size: int) -> bytes:
        """Wait for at least `size` bytes, and return all received data. Raises ConnectionError if it ends before."""
        while len(self.received) < size:
            if self.lost.done():
                raise ConnectionError(f"ended after {len(self.received)} of {size} bytes")
            self._grown.clear()
            await self._grown.wait()
        return bytes(self.received)

    async def write_slowly(self, data: bytes, chunk: int = 64 << 10) -> None:
        """Write as a well-behaved protocol does: not while the transport asks it to pause."""
        for start in range(0, len(data), chunk):
            await self.writable.wait()
            self.transport.write(data[start : start + chunk])

    def _saw(self, call: str) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._saw("made")
        self.made.set_result(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._saw("data")
        self.received += data
        self._grown.set()
        if self.echo:
            self.transport.write(data)

    def eof_received(self) -> bool:
        self._saw("eof")
        self.ended.set_result(None)
        return self.keep_open

    def pause_writing(self) -> None:
        self._saw("pause")
        self.paused.set()
        self.writable.clear()

    def resume_writing(self) -> None:
        self._saw("resume")
        self.paused.clear()
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")  # recorded each time, so that a second call shows
        self.lost.set_result(exc)
        self.writable.set()
        self._grown.set()


class Accepting:
    """A protocol factory for `listen` that queues the protocols it makes, in order."""

    def __init__(self, make: Callable[[], Recorder] = Recorder) -> None:
        self._make = make
        self._made: asyncio.Queue[Recorder] = asyncio.Queue()
        self.count = 0

    def __call__(self) -> Recorder:
        recorder = self._make()
        self.count += 1
        self._made.put_nowait(recorder)
        return recorder

    async def next(self) -> Recorder:
        return await self._made.get()


@asynccontextmanager
async def loopback_node(
    *addresses: str, private_key: bytes | None = None, preshared_key: bytes | None = None
) -> AsyncIterator[Node]:
    """A node with these overlay addresses and no peers, on a UDP port of loopback. Raises TunnelBroken if it fails."""
    engine = Engine(private_key or secrets.token_bytes(32))
    engine.set_addresses(addresses)
    driver = Driver(engine, open_socket(LOOPBACK, 0), on_handshake=lambda key: node.on_handshake(key))
    node = Node(driver, addresses, preshared_key=preshared_key)
    try:
        yield node
    finally:
        node.close()
        await driver.supervise()


def introduce(node: Node, other: Node, *, name: str = "", where: bool = True) -> None:
    """Make `other` the only peer of `node`; with `where`, `node` also learns its endpoint."""
    endpoints = {other.public_key: Endpoint(LOOPBACK, other.driver.local_port)} if where else {}
    node.set_members([Member(other.public_key, other.addresses, name)], endpoints)


def allow_everything_in(node: Node) -> None:
    node.driver.engine.set_inbound([(any_, number, 0, 65535) for any_ in ("0.0.0.0/0", "::/0") for number in (6, 17)])
