"""The SOCKS5 server's bytes, and its streams."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.driver import Connection, ProtocolFactory
from netbird_overlay.errors import ConnectError, Failed, Refused, TimedOut, Unreachable
from netbird_peer.datagrams import DatagramSocket
from netbird_peer.pipe import Dial
from netbird_peer.socks5 import TARGETS, BadHandshake, Handshake, Request, SocksDatagrams, SocksServer

GREETING = b"\x05\x01\x00"
NAMED = b"\x05\x01\x00\x03\x04wiki\x00\x50"
IPV4 = b"\x05\x01\x00\x01\x64\x40\x00\x05\x00\x50"
IPV6 = b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb"
SECONDS = 10


ASSOCIATE = b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("raw", "request_"),
    [
        (ASSOCIATE, Request("0.0.0.0", 0, datagrams=True)),
        (NAMED, Request("wiki", 80)),
        (IPV4, Request("100.64.0.5", 80)),
        (IPV6, Request("::1", 443)),
    ],
)
def test_each_form_of_address_is_read(raw: bytes, request_: Request) -> None:
    handshake = Handshake()

    assert handshake.feed(GREETING) == b"\x05\x00"
    assert handshake.feed(raw) == b""
    assert handshake.request == request_


@given(cuts=st.lists(st.integers(0, 18), max_size=6), raw=st.sampled_from([NAMED, IPV4, IPV6]))
def test_any_split_gives_the_same_request(cuts: list[int], raw: bytes) -> None:
    """Bytes behind the request belong to the stream."""
    handshake, whole = Handshake(), GREETING + raw + b"data"
    replies, edges = b"", [0, *sorted(cut for cut in cuts if cut < len(GREETING + raw)), len(whole)]
    for start, end in itertools.pairwise(edges):
        replies += handshake.feed(whole[start:end])

    assert replies == b"\x05\x00"
    assert handshake.request is not None
    assert handshake.rest == b"data"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"\x04\x01\x00\x50\x01\x02\x03\x04\x00", b""),
        (b"GET / HTTP/1.1\r\n", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x00", b"\x05\xff"),
        (GREETING + b"\x05\x02" + IPV4[2:], b"\x05\x07"),
        (GREETING + b"\x05\x04" + IPV4[2:], b"\x05\x07"),
        (GREETING + b"\x05\x01\x00\x09\x00\x00\x00\x00\x00\x50", b"\x05\x08"),
        (GREETING + b"\x05\x01\x00\x03\x00\x00\x50", b"\x05\x08"),
        (GREETING + b"\x05\x01\x00\x03\x03a b\x00\x50", b"\x05\x08"),
        (GREETING + b"\x05\x01\x00\x03\x02\xc3\xa4\x00\x50", b"\x05\x08"),
        (GREETING + IPV4[:-2] + b"\x00\x00", b"\x05\x08"),
        (GREETING + b"\x04" + IPV4[1:], b""),
    ],
    ids=[
        "socks4",
        "http",
        "password",
        "none",
        "bind",
        "unknown",
        "type",
        "empty",
        "space",
        "umlaut",
        "port",
        "version",
    ],
)
def test_everything_else_is_refused(raw: bytes, answer: bytes) -> None:
    with pytest.raises(BadHandshake) as refused:
        Handshake().feed(raw)
    assert refused.value.reply[:2] == answer


@given(chunks=st.lists(st.binary(max_size=300), max_size=10))
def test_nonsense_raises_nothing_else_and_is_bounded(chunks: list[bytes]) -> None:
    handshake = Handshake()
    with suppress(BadHandshake):
        for chunk in chunks:
            handshake.feed(chunk)
            assert handshake.request is not None or len(handshake.rest) < 262


@asynccontextmanager
async def socks(dial: Dial, *, streams: int = 8) -> AsyncIterator[tuple[int, SocksServer]]:
    """A server on loopback, and its port."""
    async with asyncio.TaskGroup() as tasks:
        served = SocksServer(tasks, dial, timeout=SECONDS, streams=streams)
        server = await asyncio.get_running_loop().create_server(served, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1], served
        server.close()


def to(port: int, asked: list[tuple[str, int]]) -> Dial:
    """A dial that leads to a port of loopback."""

    async def dial(protocol_factory: ProtocolFactory, host: str, target: int, *, timeout: float) -> Connection:
        asked.append((host, target))
        loop = asyncio.get_running_loop()
        return cast(Connection, await loop.create_connection(protocol_factory, "127.0.0.1", port))

    return dial


def failing(error: Exception) -> Dial:
    async def dial(protocol_factory: ProtocolFactory, host: str, target: int, *, timeout: float) -> Connection:
        raise error

    return dial


@asynccontextmanager
async def upper() -> AsyncIterator[int]:
    """A server that answers with what it got, in capitals, when the client has finished."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data.upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_stream_is_carried_both_ways_with_its_half_close() -> None:
    """Also bytes that the client sends before the reply."""
    asked: list[tuple[str, int]] = []
    data = b"a long story " * 100_000
    async with upper() as port, socks(to(port, asked)) as (proxy, _), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
        writer.write(GREETING + NAMED + b"early ")
        assert await reader.readexactly(12) == b"\x05\x00\x05\x00\x00\x01" + bytes(6)
        writer.write(data)
        writer.write_eof()

        assert await reader.read() == b"EARLY " + data.upper()
        writer.close()
    assert asked == [("wiki", 80)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("x"), 5),
        (Unreachable("x"), 4),
        (TimedOut("x"), 6),
        (Failed("x"), 1),
        (ConnectError("x"), 1),
        (OSError("x"), 1),
        (TimeoutError("x"), 6),
    ],
)
async def test_a_failed_dial_has_its_code(error: Exception, code: int) -> None:
    async with socks(failing(error)) as (proxy, _), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
        writer.write(GREETING + NAMED)

        assert (await reader.read())[3] == code
        writer.close()


async def test_a_defect_costs_one_stream() -> None:
    """It is reported, and the next client is served."""
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    defect = ZeroDivisionError()
    async with socks(failing(defect)) as (proxy, _), asyncio.timeout(SECONDS):
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            writer.write(GREETING + NAMED)
            assert (await reader.read())[3] == 1
            writer.close()
    assert reported == [defect, defect]


async def test_the_number_of_streams_is_bounded_and_freed() -> None:
    """A client above the bound is reset; places of clients that left, in any state, are free again."""
    async with upper() as port, socks(to(port, []), streams=1) as (proxy, served), asyncio.timeout(SECONDS):
        for first in (b"", GREETING, GREETING + NAMED, b"nonsense"):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            writer.write(first)
            if first.startswith(GREETING):
                await reader.readexactly(2)
            if first.endswith(NAMED):
                await reader.readexactly(10)
            if first != b"nonsense":
                over, other = await asyncio.open_connection("127.0.0.1", proxy)
                with suppress(ConnectionResetError):
                    assert await over.read() == b""
                other.close()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            while served.free != 1:  # noqa: ASYNC110 - nothing tells a client of it
                await asyncio.sleep(0)


# Datagrams -----------------------------------------------------------------------------------------------------------


def to_wiki(payload: bytes) -> bytes:
    return b"\x00\x00\x00\x03\x04wiki\x00\x35" + payload


class Asking(asyncio.DatagramProtocol):
    """A local socket."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)


class Overlay:
    """Sockets on the overlay that answer at once, in capitals, with their number before."""

    def __init__(self) -> None:
        self.targets: list[tuple[str, int]] = []
        self.closed: asyncio.Queue[int] = asyncio.Queue()

    async def open(self, protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float) -> DatagramSocket:
        self.targets.append((host, port))
        protocol = protocol_factory()
        socket = Answering(self, len(self.targets), protocol)
        protocol.connection_made(socket)
        return socket, protocol


class Answering(asyncio.DatagramTransport):
    def __init__(self, overlay: Overlay, number: int, protocol: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self._overlay, self._number, self._protocol = overlay, number, protocol

    def sendto(self, data: Any, addr: Any = None) -> None:
        self._protocol.datagram_received(b"%d " % self._number + bytes(data).upper(), ())

    def close(self) -> None:
        self._overlay.closed.put_nowait(self._number)


@asynccontextmanager
async def associated(
    overlay: Overlay, request: bytes = ASSOCIATE
) -> AsyncIterator[tuple[tuple[str, int], asyncio.StreamWriter]]:
    """The port of an association, and the connection that it lives as long as."""
    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
        served = SocksServer(tasks, failing(OSError()), timeout=SECONDS, streams=1, datagrams=overlay.open)
        server = await asyncio.get_running_loop().create_server(served, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(GREETING + request)
        answer = (await reader.readexactly(12))[2:]
        assert answer[:8] == b"\x05\x00\x00\x01\x7f\x00\x00\x01"
        try:
            yield ("127.0.0.1", int.from_bytes(answer[8:])), writer
        finally:
            writer.close()
            server.close()
    assert served.free == 1


async def asking(port: tuple[str, int], local: int = 0) -> Asking:
    loop = asyncio.get_running_loop()
    return (await loop.create_datagram_endpoint(Asking, ("127.0.0.1", local), remote_addr=port))[1]


async def test_datagrams_pass_to_each_target_and_answers_name_their_source() -> None:
    overlay = Overlay()
    async with associated(overlay) as (port, writer):
        client = await asking(port)
        client.transport.sendto(to_wiki(b"one"))
        assert await client.received.get() == to_wiki(b"1 ONE")
        six = b"\x00\x00\x00\x04" + bytes(15) + b"\x01\x00\x35"
        client.transport.sendto(six + b"two")
        assert await client.received.get() == six + b"2 TWO"
        client.transport.sendto(to_wiki(b"three"))
        assert await client.received.get() == to_wiki(b"1 THREE")
        assert overlay.targets == [("wiki", 53), ("::1", 53)]
        writer.write(b"ignored")
        writer.close()
        assert {await overlay.closed.get(), await overlay.closed.get()} == {1, 2}, "they end with the connection"
        client.transport.close()


@pytest.mark.parametrize("named", [True, False])
async def test_only_the_clients_datagrams_count(named: bool) -> None:
    """The client is who sends first, or at the port that the request names. Another program's datagrams are dropped."""
    overlay = Overlay()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        number = own.getsockname()[1]
    request = ASSOCIATE[:-2] + number.to_bytes(2) if named else ASSOCIATE
    async with associated(overlay, request) as (port, _):
        client, stranger = await asking(port, number), await asking(port)
        if not named:
            client.transport.sendto(to_wiki(b"mine"))
            assert await client.received.get() == to_wiki(b"1 MINE")
        stranger.transport.sendto(b"\x00\x00\x00\x03\x04evil\x00\x35x")
        client.transport.sendto(to_wiki(b"again"))
        assert await client.received.get() == to_wiki(b"1 AGAIN")
        assert overlay.targets == [("wiki", 53)]
        assert stranger.received.empty()
        for each in (client, stranger):
            each.transport.close()


async def test_targets_of_an_association_are_bounded() -> None:
    overlay = Overlay()
    async with asyncio.TaskGroup() as tasks:
        relay = SocksDatagrams(tasks, overlay.open, "127.0.0.1", 0, timeout=SECONDS)
        for port in range(1, 1000):
            relay.datagram_received(b"\x00\x00\x00\x03\x04wiki" + port.to_bytes(2) + b"x", ("127.0.0.1", 5))
        assert len(relay) == TARGETS
        relay.connection_lost(None)
        assert len(relay) == 0


@given(data=st.binary(max_size=300), head=st.sampled_from([b"", bytes(3), bytes(3) + b"\x01", bytes(3) + b"\x03"]))
async def test_nonsense_in_a_datagram_raises_nothing(data: bytes, head: bytes) -> None:
    overlay = Overlay()
    async with asyncio.TaskGroup() as tasks:
        relay = SocksDatagrams(tasks, overlay.open, "127.0.0.1", 0, timeout=SECONDS)
        relay.datagram_received(head + data, ("127.0.0.1", 5))
        relay.connection_lost(None)


async def test_fragments_and_datagrams_without_a_port_are_dropped() -> None:
    overlay = Overlay()
    async with associated(overlay) as (port, _):
        client = await asking(port)
        for dropped in (
            b"\x00\x00\x01" + to_wiki(b"fragment")[3:],
            b"\x00\x00\x00\x03\x04wiki\x00\x00x",
            b"\x00\x00\x00\x09\x04wiki\x00\x35x",
            b"\x00\x00\x00\x03\xffwiki\x00\x35x",
            b"",
        ):
            client.transport.sendto(dropped)
        client.transport.sendto(to_wiki(b"whole"))
        assert await client.received.get() == to_wiki(b"1 WHOLE")
        client.transport.close()


async def test_without_datagrams_the_command_is_refused() -> None:
    async with socks(failing(OSError())) as (proxy, _), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
        writer.write(GREETING + ASSOCIATE)
        assert (await reader.read())[2:4] == b"\x05\x07"
        writer.close()
