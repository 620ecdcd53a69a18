"""The transport in memory against a socket's: the same acts give a protocol the same calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from netbird_proxy.testing.transports import MemoryTransport, connect

Opened = tuple["Recorder", "Recorder"]


class Recorder(asyncio.Protocol):
    """Writes down what it is told; bytes that come in several pieces are told once, as they may be cut anywhere."""

    keep_open = False

    def __init__(self) -> None:
        self.events: list[str] = []
        self.got = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._tell("made")

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.events[-1] != "data":
            self._tell("data")
        self.changed.set()

    def eof_received(self) -> bool:
        self._tell("eof")
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell("lost" if exc is None else f"lost {type(exc).__name__}")
        self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._tell("pause")

    def resume_writing(self) -> None:
        self._tell("resume")

    def _tell(self, what: str) -> None:
        self.events.append(what)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.changed.clear()
            await self.changed.wait()


class Buffered(Recorder, asyncio.BufferedProtocol):
    """The same with a small buffer of its own."""

    def get_buffer(self, sizehint: int) -> memoryview:
        self.buffer = bytearray(7)
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        Recorder.data_received(self, bytes(self.buffer[:nbytes]))


@asynccontextmanager
async def over_sockets(kind: type[Recorder]) -> AsyncIterator[Opened]:
    loop = asyncio.get_running_loop()
    accepted: list[Recorder] = []

    def accept() -> Recorder:
        accepted.append(kind())
        return accepted[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0)
    async with server:
        transport, client = await loop.create_connection(kind, *server.sockets[0].getsockname())
        while not accepted or not accepted[0].events:  # noqa: ASYNC110 - one turn of the loop, or a few
            await asyncio.sleep(0)
        yield client, accepted[0]
        transport.abort()
        accepted[0].transport.abort()
        await asyncio.gather(client.lost, accepted[0].lost)


@asynccontextmanager
async def in_memory(kind: type[Recorder]) -> AsyncIterator[Opened]:
    client, server = kind(), kind()
    connect(client, server)
    yield client, server
    client.transport.abort()
    server.transport.abort()
    await asyncio.gather(client.lost, server.lost)


async def talks(client: Recorder, server: Recorder) -> None:
    client.transport.write(b"hello ")
    client.transport.writelines([b"wor", bytearray(b"ld"), memoryview(b"!")])
    await server.until(lambda: server.got == b"hello world!")
    server.transport.write(b"bye")
    await client.until(lambda: client.got == b"bye")


async def closes(client: Recorder, server: Recorder) -> None:
    client.transport.write(b"last")
    client.transport.close()
    client.transport.close()
    await asyncio.gather(client.lost, server.lost)


async def half_closes(client: Recorder, server: Recorder) -> None:
    server.keep_open = True
    assert client.transport.can_write_eof()
    client.transport.write(b"ask")
    client.transport.write_eof()
    await server.until(lambda: "eof" in server.events)
    server.transport.write(b"answer")
    server.transport.close()
    await asyncio.gather(client.lost, server.lost)


async def pauses(client: Recorder, server: Recorder) -> None:
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    client.transport.write(b"held")
    for _ in range(5):
        await asyncio.sleep(0)
    assert server.got == b""
    server.transport.resume_reading()
    await server.until(lambda: server.got == b"held")


async def hands_over(client: Recorder, server: Recorder) -> None:
    client.transport.write(b"first")
    await server.until(lambda: server.got == b"first")
    other = Recorder()
    other.events.append("handed")
    server.transport.set_protocol(other)
    assert server.transport.get_protocol() is other
    client.transport.write(b"second")
    await other.until(lambda: other.got == b"second")
    server.transport.set_protocol(server)


SCENES: list[Callable[[Recorder, Recorder], Awaitable[None]]] = [talks, closes, half_closes, pauses, hands_over]


@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
@pytest.mark.parametrize("kind", [Recorder, Buffered])
async def test_as_a_socket_does(kind: type[Recorder], scene: Callable[[Recorder, Recorder], Awaitable[None]]) -> None:
    """Each scene gives both protocols the same calls and the same bytes in memory as over sockets."""
    told = []
    async with asyncio.timeout(20):
        for wire in (over_sockets, in_memory):
            async with wire(kind) as (client, server):
                await scene(client, server)
                told.append((client.events[:], client.got, server.events[:], server.got))
    assert told[0] == told[1]


async def test_writes_pile_up_and_drain() -> None:
    """Above the mark the protocol is told to pause, when the other side reads again to go on."""
    client = Recorder()
    transport = MemoryTransport.open(client)
    transport.set_write_buffer_limits(high=100)
    transport.stall()
    transport.write(b"x" * 100)
    assert client.events == ["made"]
    transport.write(b"x")
    assert client.events == ["made", "pause"]
    assert transport.get_write_buffer_size() == 101
    transport.unstall()
    assert client.events == ["made", "pause", "resume"]
    assert len(transport.sent) == 101


async def test_a_close_waits_for_what_is_written() -> None:
    """Closing flushes first; aborting does not."""
    client = Recorder()
    transport = MemoryTransport.open(client)
    transport.stall()
    transport.write(b"last")
    transport.close()
    await asyncio.sleep(0)
    assert not transport.lost
    transport.unstall()
    await client.lost
    assert bytes(transport.sent) == b"last"

    other = MemoryTransport.open(Recorder())
    other.stall()
    other.write(b"last")
    other.abort()
    await asyncio.sleep(0)
    assert other.lost
    assert other.sent == b""


async def test_a_break_is_told_to_both() -> None:
    """What one side resets, the other sees as a reset."""
    client, server = Recorder(), Recorder()
    connect(client, server)
    client.transport.abort()
    await asyncio.gather(client.lost, server.lost)
    assert client.events == ["made", "lost"]
    assert server.events == ["made", "lost ConnectionResetError"]
