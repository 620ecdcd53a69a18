"""Websockets with real ends: a client and a server that know nothing of us, our listener between them."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from netbird_proxy import ALLOW, Deny, Guard
from netbird_proxy.api.model import Address
from netbird_proxy.app import ReverseProxy
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import HostListener, serve_host
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.listening.tunnels import serve_inside
from netbird_proxy.pipeline.ending import Environment
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.compile import Compiler
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import ACCOUNT, HOST, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.pools import Pools
from netbird_tunnel_netstack.testing import tunnel_pair

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine on each event loop, within a bound."""

    async def bounded(coroutine: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(30):
            await coroutine

    def runs(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded(coroutine))

    return runs


class Proxied:
    """The application with one route, whose guard says what the test wants said now."""

    def __init__(self, port: int) -> None:
        self.verdict: Any = ALLOW
        self.seen: asyncio.Queue[Any] = asyncio.Queue()
        self.pools = Pools(UpstreamPool)
        hooks = StepHooks(authorize=[("gate", Guard(self._judge))])
        compiler = Compiler(hooks, FakeProxy(), self.pools, Environment(), observers=[("test", self.seen.put_nowait)])
        routing = Routing(compiler)
        [report] = routing.apply("file", [mapping(route(to=upstream(f"http://127.0.0.1:{port}")), source="file")])
        assert report.ok, report.refused
        self.origins = Origins()
        self.app = ReverseProxy(routing, recognizes=self.origins.recognizes)
        self.connections = Connections(self.app, origins=self.origins, listener="test")

    async def _judge(self, exchange: Any) -> Any:
        return self.verdict

    @asynccontextmanager
    async def listening(self, tls: ServerTls | None = None) -> AsyncIterator[HostListener]:
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self.app.exchanges.run())
            listener = await serve_host(self.connections, Address("127.0.0.1", 0), tls=tls)
            try:
                yield listener
            finally:
                listener.close()
                await listener.drain(0)
                asking.cancel()
                self.pools.close()


async def chat(client: ServerConnection) -> None:
    """What the server does: echo, and say a few things about the handshake first."""
    request = client.request
    assert request is not None
    await client.send(f"{request.path} {client.subprotocol} {request.headers.get('X-Forwarded-Host')}")
    async for message in client:
        await client.send(message)
        if message == "leave":
            await client.close(4001, "left")


def reach(listener: HostListener, context: ssl.SSLContext | None = None, **more: Any) -> connect:
    scheme = "ws" if context is None else "wss"
    where = {"host": "127.0.0.1", "port": listener.address.port, "proxy": None}
    return connect(f"{scheme}://{HOST}/chat?q=1", ssl=context, **where, **more)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_websocket_end_to_end(run: Run, tmp_path: Path, secure: bool) -> None:
    """Subprotocol, compression, pings, large messages and the close code are between the two ends."""
    ca = trustme.CA()
    issued = ca.issue_cert(HOST)
    issued.private_key_pem.write_to_path(tmp_path / "key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")

    class Files:
        cert, key = tmp_path / "cert", tmp_path / "key"

    context = ssl.create_default_context()
    ca.configure_trust(context)

    async def test() -> None:
        async with serve(chat, "127.0.0.1", 0, subprotocols=["chat"], max_size=None) as server:  # type: ignore[list-item]
            proxied = Proxied(server.sockets[0].getsockname()[1])
            async with proxied.listening(ServerTls([Files()]) if secure else None) as listener:
                subprotocols: Any = ["other", "chat"]
                async with reach(
                    listener, context if secure else None, subprotocols=subprotocols, max_size=None
                ) as client:
                    assert await client.recv() == f"/chat?q=1 chat {HOST}"
                    assert client.subprotocol == "chat"
                    assert [type(one).__name__ for one in client.protocol.extensions] == ["PerMessageDeflate"]
                    await (await client.ping())
                    big = bytes(range(256)) * 8192
                    await client.send(big)
                    assert await client.recv() == big
                    await client.send("leave")
                    assert await client.recv() == "leave"
                    with pytest.raises(ConnectionClosedError) as closed:
                        await client.recv()
                    assert closed.value.rcvd is not None
                    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "left")
                exchange = await proxied.seen.get()
                assert (exchange.status, exchange.error, exchange.kind) == (101, None, "websocket")
                assert exchange.bytes_received > 1000
                assert exchange.bytes_sent > 1000

    run(test())


def test_client_that_closes_first_closes_in_order(run: Run) -> None:
    """The server sees its code, and neither side sees a failure."""
    ended: list[Any] = []

    async def server_side(client: ServerConnection) -> None:
        try:
            await client.recv()
        except ConnectionClosedOK as closed:
            ended.append(closed.rcvd and closed.rcvd.code)

    async def test() -> None:
        async with serve(server_side, "127.0.0.1", 0) as server:
            proxied = Proxied(server.sockets[0].getsockname()[1])
            async with proxied.listening() as listener:
                async with reach(listener) as client:
                    await client.close(1000)
                exchange = await proxied.seen.get()
                assert (exchange.status, exchange.error) == (101, None)
        assert ended == [1000]

    run(test())


def test_server_that_refuses_is_heard(run: Run) -> None:
    """Its answer is relayed as it came."""

    async def test() -> None:
        async with serve(chat, "127.0.0.1", 0, process_request=lambda one, _: one.respond(418, "no")) as server:
            proxied = Proxied(server.sockets[0].getsockname()[1])
            async with proxied.listening() as listener:
                with pytest.raises(InvalidStatus) as refused:
                    await reach(listener)
                assert refused.value.response.status_code == 418
                assert (await proxied.seen.get()).status == 418

    run(test())


def test_guard_is_asked_first_and_asked_again(run: Run) -> None:
    """A refused upgrade never reaches the server; an open one is cut on both sides once it may not go on."""
    seen: list[bool] = []
    lost = asyncio.Event()

    async def server_side(client: ServerConnection) -> None:
        seen.append(True)
        try:
            await client.recv()
        except ConnectionClosedError:
            lost.set()

    async def test() -> None:
        async with serve(server_side, "127.0.0.1", 0) as server:
            proxied = Proxied(server.sockets[0].getsockname()[1])
            async with proxied.listening() as listener:
                proxied.verdict = Deny(403, "not_in_group")
                with pytest.raises(InvalidStatus) as refused:
                    await reach(listener)
                assert refused.value.response.status_code == 403
                assert seen == []
                proxied.verdict = ALLOW
                async with reach(listener) as client:
                    proxied.verdict = Deny(403, "not_in_group")
                    proxied.app.exchanges.revalidate(account=ACCOUNT)
                    with pytest.raises(ConnectionClosedError):
                        await client.recv()
                await lost.wait()
                assert (await proxied.seen.get()).denial.code == "not_in_group"
                last = await proxied.seen.get()
                assert (last.status, last.denial.code) == (101, "not_in_group")

    run(test())


@pytest.mark.parametrize("way", ["up", "down"])
def test_slow_reader_slows_the_writer(run: Run, way: str) -> None:
    """Either way: what is under way stays within the buffers, and nothing of it is lost."""
    size = 48 << 20
    piece = bytes(range(256)) * 256
    wanted = hashlib.sha256(piece * (size // len(piece))).hexdigest()
    head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: raw\r\nconnection: Upgrade\r\n\r\n"

    async def write_all(writer: asyncio.StreamWriter, until: asyncio.Event) -> None:
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
        until.set()

    async def read_all(reader: asyncio.StreamReader) -> str:
        digest = hashlib.sha256()
        while data := await reader.read(1 << 18):
            digest.update(data)
        return digest.hexdigest()

    async def test() -> None:
        go, written = asyncio.Event(), asyncio.Event()
        heard: asyncio.Queue[str] = asyncio.Queue()

        async def server_side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            if way == "up":
                await go.wait()
                heard.put_nowait(await read_all(reader))
            else:
                await write_all(writer, written)
                await reader.read()
            writer.close()

        server = await asyncio.start_server(server_side, "127.0.0.1", 0, limit=1 << 16)
        proxied = Proxied(server.sockets[0].getsockname()[1])
        async with proxied.listening() as listener, asyncio.TaskGroup() as group:
            reader, writer = await asyncio.open_connection(*listener.address, limit=1 << 16)
            writer.write(b"GET / HTTP/1.1\r\nhost: %b\r\nupgrade: raw\r\nconnection: upgrade\r\n\r\n" % HOST.encode())
            await reader.readuntil(b"\r\n\r\n")
            [protocol] = proxied.connections.open
            assert isinstance(protocol, Http1Protocol)
            if way == "up":
                group.create_task(write_all(writer, written))
                while not protocol._reading_paused:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)
                raw = protocol._raw
                assert raw is not None
                assert raw.buffered < 1 << 20
            else:
                while not protocol.write_paused:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert protocol.transport.get_write_buffer_size() < 1 << 20
            assert not written.is_set()
            go.set()
            if way == "down":
                heard.put_nowait(await read_all(reader))
                writer.write_eof()
            else:
                await reader.read()
            assert await heard.get() == wanted
            writer.close()
            exchange = await proxied.seen.get()
            assert (exchange.bytes_received if way == "up" else exchange.bytes_sent) == size
        server.close()

    run(test())


class Peer(asyncio.Protocol):
    """A websocket client on a transport that is no socket's."""

    def __init__(self) -> None:
        self.protocol = ClientProtocol(parse_uri(f"ws://{HOST}/chat"))
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.protocol.send_request(self.protocol.connect())
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.protocol.receive_data(data)
        self._after()

    def eof_received(self) -> bool:
        self.protocol.receive_eof()
        self._after()
        return False

    def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.transport.write(data)
            else:
                self.transport.write_eof()

    def _after(self) -> None:
        self.flush()
        for event in self.protocol.events_received():
            self.events.put_nowait(event)


async def test_websocket_through_a_tunnel() -> None:
    """The listener inside a tunnel serves it just so; the exchange knows whose tunnel it came in on."""
    async with (
        asyncio.timeout(30),
        serve(chat, "127.0.0.1", 0, compression=None) as server,
        tunnel_pair() as (near, far),
    ):
        proxied = Proxied(server.sockets[0].getsockname()[1])
        proxied.connections.account = ACCOUNT
        inside = await serve_inside(proxied.connections, far, tls=None)
        _, client = await near.dial(Peer, Address(far.addresses[0], 80), timeout=10)
        assert isinstance(client, Peer)
        answer = await client.events.get()
        assert answer.status_code == 101
        assert (await client.events.get()).data == f"/chat None {HOST}".encode()
        client.protocol.send_text(b"through the tunnel")
        client.flush()
        echoed = await client.events.get()
        assert isinstance(echoed, Frame)
        assert (echoed.opcode, echoed.data) == (Opcode.TEXT, b"through the tunnel")
        client.protocol.send_close(1000)
        client.flush()
        assert (await client.events.get()).opcode is Opcode.CLOSE
        exchange = await proxied.seen.get()
        assert (exchange.status, exchange.error, exchange.origin.account) == (101, None, ACCOUNT)
        inside.close()
        await inside.drain(1)
        proxied.pools.close()
