"""A tunnel's connection is a full asyncio transport: protocols, streams, TLS and servers run on it, on both loops."""
# Over 500 lines: one transport's contract, tried with one pair of peers.

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from netbird_overlay.testing import Accepting, Recorder
from netbird_proxy import Address
from netbird_tunnel_netstack.testing import tunnel_pair
from netbird_tunnel_netstack.tunnel import NetstackTunnel

SERVER = Address("100.64.0.2", 80)
SIZE = 8 << 20

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def tunnels() -> AsyncIterator[tuple[NetstackTunnel, NetstackTunnel]]:
    async with tunnel_pair() as pair:
        yield pair


Tunnels = tuple[NetstackTunnel, NetstackTunnel]


async def connected(tunnels: Tunnels, *, server: Any = Recorder, client: Any = Recorder) -> tuple[Recorder, Recorder]:
    accepting = Accepting(server)
    await tunnels[1].listen(SERVER.port, accepting)
    _, protocol = await tunnels[0].dial(client, SERVER, timeout=10)
    return protocol, await accepting.next()  # type: ignore[return-value]


def noise(size: int) -> bytes:
    return random.Random(7).randbytes(size)


async def test_eight_megabytes_each_way(tunnels: Tunnels) -> None:
    """Data arrives unchanged in both directions at once, and the connection ends in order."""
    client, server = await connected(
        tunnels, server=lambda: Recorder(keep_open=True), client=lambda: Recorder(keep_open=True)
    )
    up, down = noise(SIZE), noise(SIZE)[::-1]
    await asyncio.gather(client.write_slowly(up), server.write_slowly(down))
    client.transport.write_eof()
    server.transport.write_eof()
    assert await client.lost is None
    assert await server.lost is None
    assert hashlib.sha256(server.received).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(client.received).digest() == hashlib.sha256(down).digest()
    assert client.calls.count("pause") == client.calls.count("resume") > 0


async def test_half_close(tunnels: Tunnels) -> None:
    """After sending its end of stream, a side still receives data."""
    client, server = await connected(tunnels, server=lambda: Recorder(keep_open=True))
    client.transport.write(b"question")
    client.transport.write_eof()
    await server.ended
    assert not server.transport.is_closing()
    with pytest.raises(RuntimeError, match="write_eof"):
        client.transport.write(b"more")
    server.transport.write(b"answer" * 100_000)
    server.transport.close()
    assert await client.lost is None
    assert await server.lost is None
    assert server.received == b"question"
    assert client.received == b"answer" * 100_000
    assert client.calls == ["made", "data", "eof", "lost"]


async def test_an_end_of_stream_closes_unless_kept_open(tunnels: Tunnels) -> None:
    """By default, the end of the other side's stream closes the connection."""
    client, server = await connected(tunnels)
    client.transport.write_eof()
    assert await server.lost is None
    assert await client.lost is None
    assert server.calls == ["made", "eof", "lost"]
    assert client.calls == ["made", "eof", "lost"]


async def test_close_delivers_what_was_written(tunnels: Tunnels) -> None:
    """Far more than any buffer holds was written before close, and all of it arrives."""
    client, server = await connected(tunnels)
    data = noise(2 << 20)
    client.transport.write(data)
    client.transport.close()
    client.transport.close()
    client.transport.write(b"too late")
    assert client.transport.is_closing()
    assert "lost" not in client.calls
    assert await server.lost is None
    assert bytes(server.received) == data
    assert await client.lost is None


async def test_reset_by_the_other_end(tunnels: Tunnels) -> None:
    """An abort there is a ConnectionResetError here, and None there, each once."""
    client, server = await connected(tunnels)
    server.transport.abort()
    server.transport.abort()
    assert isinstance(await client.lost, ConnectionResetError)
    assert await server.lost is None
    client.transport.abort()
    client.transport.close()
    client.transport.write(b"into the void")
    client.transport.pause_reading()
    client.transport.resume_reading()
    assert client.calls == ["made", "lost"]
    assert server.calls == ["made", "lost"]


async def test_a_paused_reader_stalls_the_sender(tunnels: Tunnels) -> None:
    """While a reader pauses, the sender's protocol is paused too, and no data is lost."""
    client, server = await connected(tunnels)
    server.transport.pause_reading()
    server.transport.pause_reading()
    assert not server.transport.is_reading()
    data = noise(4 << 20)
    writing = asyncio.gather(client.write_slowly(data))
    await client.paused.wait()
    assert server.received == b""
    assert client.transport.get_write_buffer_size() > 0
    server.transport.resume_reading()
    await writing
    client.transport.close()
    assert await server.lost is None
    assert bytes(server.received) == data


async def test_reading_pauses_inside_a_callback(tunnels: Tunnels) -> None:
    """A protocol that pauses with each piece gets exactly one piece per resume, in order, and then the end."""

    class Sipping(Recorder):
        sips = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.sips += 1
            self.transport.pause_reading()

    client, server = await connected(tunnels, server=Sipping)
    data = noise(1 << 20)
    client.transport.write(data)
    client.transport.close()
    sips = 0
    while len(server.received) < len(data):
        await server.has(len(server.received) + 1)
        assert isinstance(server, Sipping)
        assert server.sips == sips + 1
        assert not server.transport.is_reading()
        assert "eof" not in server.calls
        sips = server.sips
        server.transport.resume_reading()
    assert await server.lost is None
    assert bytes(server.received) == data


async def test_the_end_waits_for_a_paused_reader(tunnels: Tunnels) -> None:
    """A paused reader receives the remaining data and the end after it resumes, also if the sender is gone."""
    client, server = await connected(tunnels, server=lambda: Recorder(keep_open=True))
    server.transport.pause_reading()
    server.transport.write_eof()
    client.transport.write(b"last words")
    client.transport.close()
    await client.lost
    assert server.calls == ["made"]
    server.transport.resume_reading()
    assert await server.lost is None
    assert server.calls == ["made", "data", "eof", "lost"]
    assert server.received == b"last words"


async def test_a_paused_transport_can_be_closed(tunnels: Tunnels) -> None:
    """A protocol that never reads again is still told the end, with data waiting on both sides."""
    client, server = await connected(tunnels)
    server.transport.pause_reading()
    client.transport.write(noise(1 << 20))
    server.transport.write(noise(1 << 20))
    client.transport.close()
    server.transport.close()
    await server.lost
    await client.lost
    assert server.received == b""


async def test_watermarks(tunnels: Tunnels) -> None:
    """pause_writing above the high mark, once; resume_writing at the low one, once."""
    client, server = await connected(tunnels)
    server.transport.pause_reading()
    transport = client.transport
    transport.set_write_buffer_limits(high=100_000)
    assert transport.get_write_buffer_limits() == (25_000, 100_000)  # type: ignore[attr-defined]
    for _ in range(64):
        transport.write(bytes(64 << 10))
    assert transport.get_write_buffer_size() > 100_000
    assert client.calls == ["made", "pause"]
    server.transport.resume_reading()
    await client.writable.wait()
    assert transport.get_write_buffer_size() <= 25_000
    await server.has(64 * (64 << 10))
    assert client.calls == ["made", "pause", "resume"]
    with pytest.raises(ValueError, match="high"):
        transport.set_write_buffer_limits(high=1, low=2)


async def test_what_can_be_written(tunnels: Tunnels) -> None:
    """Bytes-like objects, lists of them and empty data can be written; strings are refused."""
    client, server = await connected(tunnels)
    client.transport.write(bytearray(b"a"))
    client.transport.write(memoryview(b"xbx")[1:2])
    client.transport.write(b"")
    client.transport.writelines([b"c", bytearray(b"d")])
    with pytest.raises(TypeError):
        client.transport.write("e")  # type: ignore[arg-type]
    assert client.transport.can_write_eof()
    assert await server.has(4) == b"abcd"


async def test_a_buffer_may_change_after_write(tunnels: Tunnels) -> None:
    """The transport keeps its own copy of what the engine did not take at once."""
    client, server = await connected(tunnels)
    data = bytearray(noise(1 << 20))
    sent = bytes(data)
    client.transport.write(data)
    data[:] = bytes(len(data))
    assert await server.has(len(sent)) == sent


async def test_says_where_it_is(tunnels: Tunnels) -> None:
    """Addresses are pairs, as servers expect; the accepted side also knows which peer it is."""
    client, server = await connected(tunnels)
    assert client.transport.get_extra_info("peername") == ("100.64.0.2", 80)
    assert server.transport.get_extra_info("sockname") == ("100.64.0.2", 80)
    assert server.transport.get_extra_info("peername") == client.transport.get_extra_info("sockname")
    assert server.transport.get_extra_info("peername")[0] == "100.64.0.1"
    assert server.transport.get_extra_info("tunnel_peer") == tunnels[0].public_key
    assert server.transport.get_extra_info("socket") is None
    assert client.transport.get_protocol() is client


async def test_ipv6(tunnels: Tunnels) -> None:
    """Connections over IPv6 work like those over IPv4."""
    accepting = Accepting(lambda: Recorder(echo=True))
    await tunnels[1].listen(80, accepting)
    _, client = await tunnels[0].dial(Recorder, Address("fd00::2", 80), timeout=10)
    assert isinstance(client, Recorder)
    client.transport.write(b"six")
    assert await client.has(3) == b"six"
    assert client.transport.get_extra_info("peername") == ("fd00::2", 80)


class Small(asyncio.BufferedProtocol):
    """Takes seven bytes at a time, and pauses after each hundred kilobytes."""

    def __init__(self) -> None:
        self.buffer = bytearray(7)
        self.received = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.pauses = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        if len(self.received) > (self.pauses + 1) * 100_000:
            self.pauses += 1
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def test_buffered_protocols(tunnels: Tunnels) -> None:
    """A protocol with a buffer of its own gets every byte once, pauses in mid-piece included."""
    made: asyncio.Future[Small] = asyncio.get_running_loop().create_future()

    def factory() -> Small:
        made.set_result(Small())
        return made.result()

    await tunnels[1].listen(80, factory)
    _, client = await tunnels[0].dial(Recorder, SERVER, timeout=10)
    assert isinstance(client, Recorder)
    data = noise(500_000)
    client.transport.write(data)
    client.transport.close()
    server = await made
    assert await server.lost is None
    assert bytes(server.received) == data
    assert server.pauses == 4


class Failing(Recorder):
    """Raises in one of its callbacks."""

    where = ""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.where == "data":
            raise RuntimeError("data")

    def eof_received(self) -> bool:
        super().eof_received()
        if self.where == "eof":
            raise RuntimeError("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.where == "lost":
            raise RuntimeError("lost")


@pytest.mark.parametrize("where", ["data", "eof", "lost"])
async def test_a_protocol_that_fails_costs_its_own_connection(tunnels: Tunnels, where: str) -> None:
    """A failing protocol is reported and its connection reset; other connections continue."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))

    def failing() -> Failing:
        protocol = Failing()
        protocol.where = where
        return protocol

    client, server = await connected(tunnels, server=failing)
    _, bystander = await tunnels[0].dial(Recorder, SERVER, timeout=10)
    client.transport.write(b"x")
    client.transport.write_eof()
    lost = await server.lost
    await client.lost
    assert (lost is None) == (where == "lost")
    assert [str(report["exception"]) for report in reports] == [where]
    assert isinstance(bystander, Recorder)
    assert not bystander.transport.is_closing()


# TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("wiki.example.com").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, server


def secured(protocol: asyncio.Protocol, context: ssl.SSLContext, **more: Any) -> tuple[SSLProtocol, Any]:
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    return SSLProtocol(loop, protocol, context, waiter, ssl_handshake_timeout=more.pop("handshake", 10), **more), waiter


async def test_tls_in_both_roles(tunnels: Tunnels, authority: trustme.CA) -> None:
    """asyncio's own TLS runs over it on both ends: megabytes each way, a certificate checked, an orderly end."""
    for_client, for_server = contexts(authority)
    servers: list[Recorder] = []

    def serve() -> SSLProtocol:
        servers.append(Recorder(echo=True))
        return secured(servers[-1], for_server, server_side=True)[0]

    await tunnels[1].listen(443, serve)
    client = Recorder()
    protocol, shaken = secured(client, for_client, server_hostname="wiki.example.com")
    await tunnels[0].dial(lambda: protocol, Address("100.64.0.2", 443), timeout=10)
    await shaken
    data = noise(1 << 20)
    await client.write_slowly(data)
    assert await client.has(len(data)) == data
    assert servers[0].transport.get_extra_info("peername")[0] == "100.64.0.1"
    client.transport.close()
    assert await client.lost is None
    assert await servers[0].lost is None


async def test_tls_back_pressure(tunnels: Tunnels, authority: trustme.CA) -> None:
    """A paused reader stalls the sender through TLS too."""
    for_client, for_server = contexts(authority)
    servers: list[Recorder] = []

    def serve() -> SSLProtocol:
        servers.append(Recorder())
        return secured(servers[-1], for_server, server_side=True)[0]

    await tunnels[1].listen(443, serve)
    client = Recorder()
    protocol, shaken = secured(client, for_client, server_hostname="wiki.example.com")
    await tunnels[0].dial(lambda: protocol, Address("100.64.0.2", 443), timeout=10)
    await shaken
    await servers[0].made
    servers[0].transport.pause_reading()
    data = noise(4 << 20)
    writing = asyncio.gather(client.write_slowly(data))
    await client.paused.wait()
    held = len(servers[0].received)
    assert held < len(data) // 2
    servers[0].transport.resume_reading()
    await writing
    assert await servers[0].has(len(data)) == data


async def test_tls_that_fails_ends_on_both_sides(tunnels: Tunnels, authority: trustme.CA) -> None:
    """A name that the certificate lacks fails the handshake, and both ends finish."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for_client, for_server = contexts(authority)
    servers: list[Any] = []

    def serve() -> SSLProtocol:
        protocol, waiter = secured(Recorder(), for_server, server_side=True)
        servers.append(waiter)
        return protocol

    await tunnels[1].listen(443, serve)
    protocol, shaken = secured(Recorder(), for_client, server_hostname="other.example.com")
    await tunnels[0].dial(lambda: protocol, Address("100.64.0.2", 443), timeout=10)
    with pytest.raises(ssl.SSLCertVerificationError):
        await shaken
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await servers[0]


async def test_tls_with_a_silent_client_ends(tunnels: Tunnels, authority: trustme.CA) -> None:
    """A handshake that never comes is ended by asyncio's own timer, and the connection with it."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    _, for_server = contexts(authority)
    servers: list[Any] = []

    def serve() -> SSLProtocol:
        protocol, waiter = secured(Recorder(), for_server, server_side=True, handshake=1)
        servers.append(waiter)
        return protocol

    await tunnels[1].listen(443, serve)
    _, client = await tunnels[0].dial(Recorder, Address("100.64.0.2", 443), timeout=10)
    assert isinstance(client, Recorder)
    assert isinstance(await client.lost, ConnectionResetError)
    with pytest.raises(ConnectionError):
        await servers[0]


# Streams and servers ------------------------------------------------------------------------------------------------


async def test_streams(tunnels: Tunnels) -> None:
    """asyncio's reader and writer work on both ends, draining included."""
    loop = asyncio.get_running_loop()
    served: asyncio.Future[None] = loop.create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(20):
            size = int(await reader.readline())
            writer.write(await reader.readexactly(size))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            served.set_result(None)

    await tunnels[1].listen(80, lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve))
    reader = asyncio.StreamReader()
    transport, protocol = await tunnels[0].dial(lambda: asyncio.StreamReaderProtocol(reader), SERVER, timeout=10)
    assert isinstance(protocol, asyncio.StreamReaderProtocol)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    data = noise(3 << 20)
    writer.write(b"%d\n" % len(data) + data)
    await writer.drain()
    assert await reader.read() == data
    await served
    writer.close()
    await writer.wait_closed()


async def test_uvicorn(tunnels: Tunnels) -> None:
    """A server that knows nothing of tunnels serves on one: addresses in the scope, bodies both ways, keep-alive."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app,
        http=HttpToolsProtocol,
        loop="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        date_header=False,
        log_config=None,
        access_log=False,
    )
    config.load()
    state = ServerState()
    await tunnels[1].listen(
        80, lambda: HttpToolsProtocol(config=config, server_state=state, app_state={"tunnel": "yes"}, _loop=loop)
    )
    _, client = await tunnels[0].dial(Recorder, SERVER, timeout=10)
    assert isinstance(client, Recorder)
    data = noise(SIZE)
    head = b"POST /upload HTTP/1.1\r\nHost: wiki.example.com\r\nContent-Length: %d\r\n\r\n" % len(data)
    for _ in range(2):
        client.received.clear()
        await client.write_slowly(head + data)
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data)
        received = await client.has(len(answer) + len(data))
        assert received.startswith(answer)
        assert hashlib.sha256(received[len(answer) :]).digest() == hashlib.sha256(data).digest()
    client.transport.close()
    await client.lost
    assert scopes[0]["client"][0] == "100.64.0.1"
    assert scopes[0]["server"] == ("100.64.0.2", 80)
    assert scopes[0]["state"] == {"tunnel": "yes"}
