"""An in-memory client for our HTTP/1.1 protocol: bytes in, bytes out, no socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from netbird_proxy.asgi import ASGIApp
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins


class MemoryTransport(asyncio.Transport):
    """A transport whose other end is the test. Like a real one it reports its close later, from the loop."""

    def __init__(self, *, high_water: int = 1 << 30) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = bytearray()
        self.writes = 0
        self.unread = 0  # bytes the test has not taken yet
        self.high_water = high_water
        self.paused_protocol = False
        self.reading = True
        self.closing = False
        self.aborted = False
        self.eof_written = False
        self.lost = asyncio.Event()
        self.changed = asyncio.Event()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.7", 40000), "sockname": ("192.0.2.1", 80)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data, "an empty write"
        assert not self.eof_written, "written after our own end"
        if self.closing:
            return
        self.written += data
        self.writes += 1
        self.unread += len(data)
        if self.unread > self.high_water and not self.paused_protocol:
            self.paused_protocol = True
            self.protocol.pause_writing()
        self.changed.set()

    def take(self) -> None:
        """The client reads everything that is on its way."""
        self.unread = 0
        if self.paused_protocol:
            self.paused_protocol = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        """What is below the high-water mark has left us: a kernel has it."""
        return self.unread if self.paused_protocol else 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True
        self.changed.set()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self.aborted = True
        self._lose(None)

    def _lose(self, exc: Exception | None) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self._lost, exc)

    def _lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)
        self.lost.set()
        self.changed.set()


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append((event, facts))

    error = info

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


class Client:
    """One connection to the application under test."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: ListenLimits | None = None,
        high_water: int = 1 << 30,
        behind_tls_proxy: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.log = Log()
        self.origins = Origins()
        self.connections = Connections(
            app,
            origins=self.origins,
            listener="http 192.0.2.1:80",
            limits=limits,
            behind_tls_proxy=behind_tls_proxy,
            count=lambda name: self.counters.update([name]),
            log=self.log,
        )
        self.protocol = Http1Protocol(self.connections)
        self.transport = MemoryTransport(high_water=high_water)
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    def feed(self, data: bytes) -> None:
        if not self.transport.closing:
            self.protocol.data_received(data)

    def eof(self) -> None:
        if not self.transport.closing and not self.protocol.eof_received():
            self.transport.close()

    def vanish(self) -> None:
        self.transport._lose(ConnectionResetError("reset"))

    @property
    def sent(self) -> bytes:
        return bytes(self.transport.written)

    async def settle(self) -> None:
        """Let everything that can run without further input run."""
        for _ in range(12):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self.transport.changed.clear()
                if condition():
                    return
                await self.transport.changed.wait()
                await asyncio.sleep(0)

    async def closed(self, timeout: float = 5.0) -> None:
        async with asyncio.timeout(timeout):
            await self.transport.lost.wait()

    async def end(self) -> None:
        self.transport.abort()
        await self.closed()
        await self.connections.drain(1.0)


@pytest.fixture
async def connect() -> Any:
    """Makes in-memory clients and ends them."""
    clients: list[Client] = []

    def make(app: ASGIApp, **settings: Any) -> Client:
        client = Client(app, **settings)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.end()
        assert not client.connections.open
        assert not client.connections.tasks
        assert len(client.origins) == 0


@pytest.fixture
def connect_sync() -> type[Client]:
    """The client itself, for tests that run their own loops and end it themselves."""
    return Client
