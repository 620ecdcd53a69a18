"""Memory stays flat while much more goes through than there is room for, and the reader is slow.

`STREAM_MIB` says how much goes each way; 1024 is the promise, and continuous integration takes less.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.live.house import HOST, House, house

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

MIB = 1 << 20
SIZE = int(os.environ.get("STREAM_MIB", "128")) * MIB
BOUND = 32 * MIB
PIECE = 256 * 1024


class Upstream:
    """Sends and takes as much as it is asked for; a pause after each piece makes it slow.

    Attributes:
        sent: body bytes that it could get rid of.
        taken: body bytes that it has read.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.taken = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"get"):
            size = int(head.split(b" ", 2)[1].lstrip(b"/"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            piece = b"x" * PIECE
            while size:
                writer.write(piece[:size])
                await writer.drain()
                self.sent += len(piece[:size])
                size -= len(piece[:size])
        elif b"transfer-encoding" in head:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await self._take(reader, size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
            await self._take(reader, int(length.split(b":")[1]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def _take(self, reader: asyncio.StreamReader, size: int) -> None:
        while size:
            piece = await reader.read(min(size, PIECE))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            self.taken += len(piece)
            await asyncio.sleep(0.0005)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Upstream, House]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=PIECE)
    try:
        async with house(directory, server.sockets[0].getsockname()[1]) as made:
            yield upstream, made
    finally:
        server.close()


async def reach(made: House, secure: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not secure:
        return await asyncio.open_connection("127.0.0.1", made.http, limit=PIECE)
    context = ssl.create_default_context(cafile=str(made.certificates.authority))
    return await asyncio.open_connection(
        "127.0.0.1", made.https, limit=PIECE, ssl=context, server_hostname="proxy.demo.example"
    )


async def until_still(look: Callable[[], int]) -> None:
    """Wait until everything that can be full is: the number does not change any more."""
    last, same = look(), 0
    async with asyncio.timeout(60):
        while same < 5:
            await asyncio.sleep(0.1)
            now = look()
            same = same + 1 if now == last else 0
            last = now


async def warmed_up(made: House, secure: bool) -> int:
    """Bytes that it holds after a first exchange of a few MiB each way; from here on it must stay flat."""
    reader, writer = await reach(made, secure)
    writer.write(f"GET /{8 * MIB} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(8 * MIB)
    writer.write(f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {8 * MIB}\r\n\r\n".encode())
    writer.write(b"x" * (8 * MIB))
    await reader.readuntil(b"ok")
    writer.transport.abort()
    made.forget_peak()
    return made.memory()["VmRSS"]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_slow_reader_of_a_large_answer(tmp_path: Path, secure: bool) -> None:
    """The upstream waits, not our memory: the client first reads nothing at all, then in pieces, slowly."""
    async with running(tmp_path) as (upstream, made):
        before = await warmed_up(made, secure)
        upstream.sent = 0
        reader, writer = await reach(made, secure)
        writer.write(f"GET /{SIZE} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        await until_still(lambda: upstream.sent)
        assert upstream.sent < SIZE / 2, "nothing held the upstream back"
        got = 0
        while got < SIZE:
            got += len(piece := await reader.read(PIECE))
            assert piece
            await asyncio.sleep(0.0005)
        writer.transport.abort()
        grown = made.memory()["VmHWM"] - before
        print(f"download {SIZE // MIB} MiB {'tls' if secure else 'plain'}: at most {grown / MIB:.1f} MiB more")
        assert grown < BOUND


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_slow_taker_of_a_large_request(tmp_path: Path, secure: bool, chunked: bool) -> None:
    """The client waits, not our memory: it offers all that it has, and the upstream takes it slowly."""
    async with running(tmp_path) as (upstream, made):
        before = await warmed_up(made, secure)
        upstream.taken = 0
        reader, writer = await reach(made, secure)
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {SIZE}"
        writer.write(f"PUT / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n".encode())
        piece = b"x" * PIECE
        for _ in range(SIZE // PIECE):
            if chunked:
                writer.write(b"%x\r\n" % PIECE)
            writer.write(piece + b"\r\n" if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()
        assert upstream.taken == SIZE
        grown = made.memory()["VmHWM"] - before
        print(f"upload {SIZE // MIB} MiB {'tls' if secure else 'plain'}: at most {grown / MIB:.1f} MiB more")
        assert grown < BOUND
