"""REST and gRPC on one port, and plugins' WebSockets there."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import trustme

from netbird_host.certificates import ReloadedCertificate
from netbird_management import PluginInfo, RpcService, hookimpl
from netbird_management.front import ALPN, PREFACE, Front
from netbird_management.plugins.hooks import HookError, load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_wire.management_pb2 import Empty, ServerKeyResponse
from netbird_wire.management_pb2_grpc import ManagementServiceStub
from netbird_wire.signalexchange_pb2_grpc import SignalExchangeServicer, SignalExchangeStub
from netbird_wire.signalexchange_pb2_grpc import add_SignalExchangeServicer_to_server as add_signal
from tests.netbird_management.grpc.conftest import soon

UPGRADE = (
    b"GET /echo?x=1 HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"x-forwarded-for: 192.0.2.7\r\n\r\n"
)


class Parrot(SignalExchangeServicer):
    """Says from where it was called."""

    async def Send(self, request: Any, context: Any) -> Any:
        from netbird_management.grpc.interceptors import call_address

        request.body = call_address().encode()
        return request


class Plugin:
    """A gRPC service, and a path whose connections a test gets."""

    def __init__(self, paths: Any = None) -> None:
        self.taken: asyncio.Queue[tuple[socket.socket, bytes, str]] = asyncio.Queue()
        self._paths = {"/echo": self.take} if paths is None else paths

    def take(self, *, connection: socket.socket, head: bytes, address: str) -> None:
        self.taken.put_nowait((connection, head, address))

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def rpc(self) -> list[RpcService]:
        return [RpcService(Parrot(), add_signal, open=True)]

    @hookimpl
    def upgrades(self) -> Any:
        return self._paths


@pytest.fixture(params=["plain", "tls"])
def authority(request: pytest.FixtureRequest) -> trustme.CA | None:
    return trustme.CA() if request.param == "tls" else None


@asynccontextmanager
async def host(
    store: Path, authority: trustme.CA | None, plugin: Plugin | None = None, **fields: Any
) -> AsyncIterator[ManagementServer]:
    """The whole host with gRPC on the REST port."""
    files: dict[str, Path] = {}
    if authority is not None:
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        files = {"certificate": store / "chain.pem", "key": store / "key.pem"}
        leaf.private_key_pem.write_to_path(str(files["key"]))
        leaf.cert_chain_pems[0].write_to_path(str(files["certificate"]))
    settings = ManagementSettings(
        state_directory=store,
        plugins=(),
        rest=RestListener(listen="127.0.0.1:0", grpc=True, **files),
        grpc=Listener(listen="127.0.0.1:0"),
        grace=1,
        **fields,
    )
    async with serve(settings, load_hooks([] if plugin is None else [("echo", plugin)])) as server:
        yield server


def channel(port: int, authority: trustme.CA | None) -> grpc.aio.Channel:
    if authority is None:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(authority.cert_pem.bytes()))


def context(authority: trustme.CA | None) -> ssl.SSLContext | None:
    if authority is None:
        return None
    made = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    authority.configure_trust(made)
    return made


async def test_both_are_served_on_one_port(empty_store: Path, authority: trustme.CA | None) -> None:
    """By the same address; a client that offers HTTP/1.1 beside HTTP/2, as browsers do, gets REST."""
    scheme = "http" if authority is None else "https"
    async with host(empty_store, authority) as server:
        async with channel(server.rest_port, authority) as grpc_channel:
            answer = await ManagementServiceStub(grpc_channel).GetServerKey(Empty(), timeout=5)
        tls = context(authority)
        if tls is not None:
            tls.set_alpn_protocols(["h2", "http/1.1"])
        async with httpx.AsyncClient(verify=tls or True) as client:
            rest = await client.get(f"{scheme}://127.0.0.1:{server.rest_port}/api/instance")
        assert server.grpc_url == server.rest_url == f"{scheme}://127.0.0.1:{server.rest_port}"

    assert isinstance(answer, ServerKeyResponse)
    assert rest.json() == {"setup_required": True}


async def test_a_reloaded_certificate_keeps_the_protocols(tmp_path: Path) -> None:
    """After a reload, gRPC still gets HTTP/2 and a browser HTTP/1.1."""
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"

    def issue() -> trustme.CA:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(key))
        leaf.cert_chain_pems[0].write_to_path(str(chain))
        return authority

    issue()
    served = ReloadedCertificate(chain, key, alpn=ALPN)
    authority = issue()
    assert served.reload()
    for offered, chosen in ((["h2"], "h2"), (["h2", "http/1.1"], "http/1.1")):
        client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        authority.configure_trust(client)
        client.set_alpn_protocols(offered)
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=served.context) as server:
            port = server.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("localhost", port, ssl=client)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
            writer.close()


async def test_the_clients_address_stays_true(empty_store: Path, authority: trustme.CA | None) -> None:
    """Limits and logs count by it; a trusted proxy in front names the client, nobody else does."""
    from netbird_wire.signalexchange_pb2 import EncryptedMessage

    seen = []
    for trusted in ((), ("127.0.0.0/8",)):
        async with (
            host(empty_store, authority, Plugin(), trusted_proxies=trusted) as server,
            channel(server.rest_port, authority) as grpc_channel,
        ):
            for metadata in ((), (("x-forwarded-for", "192.0.2.7"),)):
                answer = await SignalExchangeStub(grpc_channel).Send(EncryptedMessage(), metadata=metadata, timeout=5)
                seen.append(answer.body.decode())

    assert seen == ["127.0.0.1", "127.0.0.1", "127.0.0.1", "192.0.2.7"]


async def test_a_plugin_takes_a_websocket_over(empty_store: Path, authority: trustme.CA | None) -> None:
    """Whole: its head, the bytes that came with it, and everything after, both ways."""
    plugin = Plugin()
    async with host(empty_store, authority, plugin) as server:
        reader, writer = await asyncio.open_connection("localhost", server.rest_port, ssl=context(authority))
        writer.write(UPGRADE + b"early")
        connection, head, address = await soon(plugin.taken.get())
        assert head.startswith(b"GET /echo?x=1 HTTP/1.1\r\n")
        assert head.endswith(b"\r\n\r\nearly")
        assert address == "127.0.0.1"
        inner_reader, inner_writer = await asyncio.open_connection(sock=connection)
        for size in (1, 1_000_000):  # more than the buffers between the two hold
            writer.write(b"x" * size)
            assert await soon(inner_reader.readexactly(size)) == b"x" * size
            inner_writer.write(b"y" * size)
            assert await soon(reader.readexactly(size)) == b"y" * size
        inner_writer.close()
        assert await soon(reader.read()) == b""
        writer.close()


async def test_websockets_of_nobody_are_not_upgraded(empty_store: Path) -> None:
    """Another path is answered as if nothing had been asked; the API stays closed to strangers."""
    async with host(empty_store, None, Plugin()) as server:
        for path, status in ((b"/nothing", b"404"), (b"/api/peers", b"401"), (b"/echo/", b"404")):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.rest_port)
            writer.write(UPGRADE.replace(b"/echo?x=1", path))
            assert status in await soon(reader.readline())
            writer.close()


class Raising(Plugin):
    def take(self, *, connection: socket.socket, head: bytes, address: str) -> None:
        raise RuntimeError("no")


async def test_a_plugin_that_raises_costs_its_own_connection_only(empty_store: Path) -> None:
    """It is closed, and the port serves on."""
    async with host(empty_store, None, Raising()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.rest_port)
        writer.write(UPGRADE)
        assert await soon(reader.read()) == b""
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{server.rest_url}/api/instance")).status_code == 200


@pytest.mark.parametrize("paths", [{"/api/echo": print}, {"echo": print}, {"/echo": 1}, {"/echo?a": print}, ["/echo"]])
def test_a_plugin_that_takes_what_it_may_not_stops_the_start(paths: Any) -> None:
    """The API is not a plugin's, and a path is one."""
    with pytest.raises(HookError, match="upgrades"):
        load_hooks([("echo", Plugin(paths))]).upgrades(None)  # type: ignore[arg-type]


def test_two_plugins_do_not_share_a_path() -> None:
    """The message names the first."""
    with pytest.raises(HookError, match="already served by one"):
        load_hooks([("one", Plugin()), ("two", Plugin())]).upgrades(None)  # type: ignore[arg-type]


# The front by itself: strangers who say nothing, too little or too much.


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """True once the connection has ended without a byte."""
    try:
        return not await soon(reader.read(1))
    except ConnectionResetError:
        return True


class Line(asyncio.Protocol):
    """Stands for REST: keeps what it gets."""

    def __init__(self, got: asyncio.Queue[bytes]) -> None:
        self._got = got

    def data_received(self, data: bytes) -> None:
        self._got.put_nowait(data)


@asynccontextmanager
async def alone(directory: Path, **limits: Any) -> AsyncIterator[tuple[int, asyncio.Queue[bytes], Counter[str], Front]]:
    counts: Counter[str] = Counter()
    got: asyncio.Queue[bytes] = asyncio.Queue()

    def count(name: str) -> None:
        counts[name] += 1

    front = Front(directory / "grpc.sock", count, **limits)
    make = front.protocol(lambda: Line(got))
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], got, counts, front
        front.close()


async def test_the_first_bytes_may_come_one_by_one(tmp_path: Path) -> None:
    """The decision falls with the first byte that tells the two apart, and no byte is lost."""
    async with alone(tmp_path) as (port, got, _, _front):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in b"PRI * HTTP/1.1\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        received = b""
        while received != b"PRI * HTTP/1.1\r\n":
            received += await soon(got.get())
        writer.close()


async def test_strangers_who_say_nothing_make_room(tmp_path: Path) -> None:
    """The one that waits longest goes, so that a client that sends at once is always served."""
    async with alone(tmp_path, waiting=2) as (port, got, counts, _):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await is_cut(silent[0][0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /")
        assert await soon(got.get()) == b"GET /"
        assert counts["first_bytes_awaited"] == 2
        for _, other in (*silent, (reader, writer)):
            other.close()


async def test_a_stranger_who_says_nothing_is_cut(tmp_path: Path) -> None:
    """Also one who stops within the preface."""
    async with alone(tmp_path, peek_seconds=0.05) as (port, _, counts, _front):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE[:-1])
        assert await is_cut(reader)
        assert counts["first_bytes_late"] == 1
        writer.close()


async def test_grpc_that_is_not_there_ends_the_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the host starts or stops; agents try again."""
    async with alone(tmp_path) as (port, _, _counts, front):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE)
        assert await is_cut(reader)
        assert not front.addresses
        writer.close()
    assert "front.grpc_unavailable" in [record.msg for record in caplog.records]


@asynccontextmanager
async def inner(directory: Path) -> AsyncIterator[asyncio.Queue[tuple[str, Any, Any]]]:
    """Stands for gRPC: the name, reader and writer of each connection."""
    accepted: asyncio.Queue[tuple[str, Any, Any]] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        name = writer.get_extra_info("peername")
        accepted.put_nowait((name[1:].decode(), reader, writer))

    async with await asyncio.start_unix_server(accept, directory / "grpc.sock"):
        yield accepted
        for writer in writers:
            writer.close()


async def test_connections_to_grpc_are_bounded_and_forgotten(tmp_path: Path) -> None:
    """A further one is cut and counted; the end of one makes room, and nobody keeps its address."""
    async with inner(tmp_path) as accepted, alone(tmp_path, joined=1) as (port, _, counts, front):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PREFACE + b"rest")
        name, inner_reader, inner_writer = await soon(accepted.get())
        assert front.addresses[f"unix-abstract:{name}"] == "127.0.0.1"
        assert await soon(inner_reader.readexactly(len(PREFACE) + 4)) == PREFACE + b"rest"
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        other_writer.write(PREFACE)
        assert await is_cut(other_reader)
        assert counts["grpc_connections_refused"] == 1
        inner_writer.close()
        assert await soon(reader.read()) == b""
        assert not front.addresses
        for each in (writer, other_writer):
            each.close()


async def test_one_address_cannot_take_every_place(tmp_path: Path) -> None:
    """At the limit, a client of another address takes the place of the newest of the one with most."""
    async with inner(tmp_path) as accepted, alone(tmp_path, joined=3) as (port, _, counts, front):
        crowd = []
        for _ in range(3):
            crowd.append(await asyncio.open_connection("127.0.0.1", port))
            crowd[-1][1].write(PREFACE)
            await soon(accepted.get())
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
        writer.write(PREFACE)
        name, _, _ = await soon(accepted.get())
        assert front.addresses[f"unix-abstract:{name}"] == "127.0.0.2"
        assert await is_cut(crowd[2][0])
        late, late_writer = await asyncio.open_connection("127.0.0.1", port)
        late_writer.write(PREFACE)
        assert await is_cut(late)
        assert (counts["grpc_connections_refused"], len(front.addresses)) == (2, 3)
        for _, other in (*crowd, (reader, writer), (late, late_writer)):
            other.close()


async def test_a_slow_reader_holds_back_its_own_sender(tmp_path: Path) -> None:
    """Bytes wait at gRPC and not in this process's memory."""
    async with inner(tmp_path) as accepted, alone(tmp_path) as (port, _, _counts, _front):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(PREFACE)
        _, _, inner_writer = await soon(accepted.get())
        inner_writer.write(b"x" * 50_000_000)
        async with asyncio.TaskGroup() as tasks:
            sent = tasks.create_task(inner_writer.drain())
            await soon(reader.readexactly(1_000_000))
            assert not sent.done()
            await soon(reader.readexactly(49_000_000))
            await soon(sent)
        inner_writer.close()
        writer.close()
