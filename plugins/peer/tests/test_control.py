"""The control socket of `up`: streams, served ports and status, for the other commands and for nonsense."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.driver import ProtocolFactory
from netbird_overlay.errors import Failed, Refused, Unreachable
from netbird_overlay.node import Node
from netbird_overlay.testing import Accepting, Recorder, allow_everything_in, introduce, loopback_node
from netbird_peer.control import SOCKET, ControlClient, ControlError, ControlServer, control_socket
from netbird_peer.datagrams import OpenDatagrams
from netbird_peer.pipe import Dial

SECONDS = 20
US, ALICE = "100.64.0.1", "100.64.0.5"


@dataclass
class View:
    """A node as the control socket sees it."""

    node: Node

    @property
    def dial(self) -> Dial:
        return self.node.dial

    @property
    def datagrams(self) -> OpenDatagrams:
        return self.node.datagrams

    @property
    def addresses(self) -> Sequence[str]:
        return self.node.addresses

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        self.node.listen(port, protocol_factory)

    def listen_datagrams(self, port: int, protocol_factory: DatagramFactory) -> asyncio.DatagramTransport:
        return self.node.listen_datagrams(port, protocol_factory)[0]

    def unlisten(self, port: int) -> None:
        self.node.driver.unlisten(port)

    def status(self) -> dict[str, Any]:
        return {"addresses": [*self.node.addresses]}


@dataclass
class Lab:
    """Two nodes that know each other; the control socket is ours."""

    directory: Path
    us: Node
    alice: Node
    server: ControlServer
    client: ControlClient
    downs: list[bool]


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    directory = tmp_path / ("long" * 40)  # longer than a socket's path may be
    directory.mkdir()
    async with loopback_node(US) as us, loopback_node(ALICE) as alice:
        introduce(us, alice)
        introduce(alice, us)
        allow_everything_in(us)
        allow_everything_in(alice)
        downs: list[bool] = []
        async with asyncio.timeout(SECONDS), ended() as tasks:
            server = ControlServer(tasks, lambda: downs.append(True), patience=3600.0)
            server.attach(View(us))
            async with control_socket(directory, server):
                yield Lab(directory, us, alice, server, ControlClient(directory), downs)


class Done(Exception):
    pass


@asynccontextmanager
async def ended() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose tasks end with the test."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            raise Done
    except* Done:
        pass


async def test_a_stream_is_carried_both_ways_with_its_half_close(lab: Lab) -> None:
    accepting = Accepting(lambda: Recorder(keep_open=True))
    lab.alice.listen(80, accepting)

    _, ours = await lab.client.dial(Recorder, ALICE, 80, timeout=SECONDS)
    theirs = await accepting.next()
    assert isinstance(ours, Recorder)
    data = b"a long story " * 100_000
    await ours.write_slowly(data)
    ours.transport.write_eof()
    await theirs.has(len(data))
    theirs.transport.write(b"thanks")
    theirs.transport.close()

    assert await ours.lost is None
    assert bytes(theirs.received) == data
    assert bytes(ours.received) == b"thanks"


async def test_a_server_that_speaks_first_loses_nothing(lab: Lab) -> None:
    """Its bytes may come together with the reply on the control socket."""

    class Greeter(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"220 hello\r\n" * 1000)

    lab.alice.listen(25, Greeter)
    _, ours = await lab.client.dial(lambda: Recorder(keep_open=True), ALICE, 25, timeout=SECONDS)

    assert isinstance(ours, Recorder)
    assert await ours.has(11_000) == b"220 hello\r\n" * 1000
    ours.transport.abort()


async def test_a_failed_dial_is_the_error_of_the_library(lab: Lab) -> None:
    with pytest.raises(Refused, match="refused"):
        await lab.client.dial(Recorder, ALICE, 81, timeout=SECONDS)
    with pytest.raises(Unreachable, match="no peer has this address"):
        await lab.client.dial(Recorder, "100.64.0.9", 80, timeout=SECONDS)
    with pytest.raises(Unreachable, match="this is a name"):
        await lab.client.dial(Recorder, "wiki", 80, timeout=SECONDS)


async def test_a_client_that_leaves_ends_its_dial_and_its_stream(lab: Lab) -> None:
    """A command that is killed leaves no connection on the overlay."""
    accepting = Accepting()
    lab.alice.listen(80, accepting)
    transport, _ = await lab.client.dial(Recorder, ALICE, 80, timeout=SECONDS)
    theirs = await accepting.next()
    transport.abort()
    await theirs.lost

    lab.alice.driver.engine.set_inbound([])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lab.client.dial(Recorder, ALICE, 80, timeout=SECONDS), 0.2)
    while lab.us.driver.engine.counters()["connections"]:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


async def test_ports_are_served_while_the_client_stays(lab: Lab) -> None:
    """Streams of peers reach the local server, and the port closes with the client."""
    local = await asyncio.start_server(_upper, "127.0.0.1", 0)
    port = local.sockets[0].getsockname()[1]
    async with local:
        async with lab.client.serving([(8080, "127.0.0.1", port)]) as (addresses, _):
            assert addresses == [US]
            _, peer = await lab.alice.dial(lambda: Recorder(keep_open=True), US, 8080, timeout=SECONDS)
            assert isinstance(peer, Recorder)
            peer.transport.write(b"hello")
            peer.transport.write_eof()
            assert await peer.lost is None
            assert bytes(peer.received) == b"HELLO"
            with pytest.raises(ControlError, match="listener already"):
                async with lab.client.serving([(9000, "127.0.0.1", port), (8080, "127.0.0.1", port)]):
                    pass
        while True:
            try:
                stream, _ = await lab.alice.dial(Recorder, US, 8080, timeout=SECONDS)
            except Refused:
                break
            stream.abort()
        with pytest.raises(Refused):  # the port of the request that failed
            await lab.alice.dial(Recorder, US, 9000, timeout=SECONDS)


class Shouting(asyncio.DatagramProtocol):
    """A local server that answers in capitals."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data.upper(), addr)


async def test_datagram_ports_are_served_while_the_client_stays(lab: Lab) -> None:
    """Datagrams of peers reach the local server, and the port closes with the client."""
    server, _ = await asyncio.get_running_loop().create_datagram_endpoint(Shouting, ("127.0.0.1", 0))
    forward = (5300, "127.0.0.1", server.get_extra_info("sockname")[1], "udp")
    async with lab.client.serving([forward]) as (addresses, _):  # type: ignore[list-item]
        assert addresses == [US]
        peer = Asking()
        await lab.alice.datagrams(lambda: peer, US, 5300, timeout=SECONDS)
        peer.transport.sendto(b"hello")
        assert await peer.received.get() == b"HELLO"
        with pytest.raises(ControlError, match="listener already"):
            async with lab.client.serving([forward]):  # type: ignore[list-item]
                pass
    while lab.server.serving:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    peer.transport.sendto(b"anyone?")
    assert isinstance(await peer.errors.get(), ConnectionRefusedError)
    peer.transport.close()
    server.close()


class Asking(asyncio.DatagramProtocol):
    """A peer's socket."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)


async def test_clients_learn_that_the_node_is_made_anew(lab: Lab) -> None:
    """Ports of the earlier node are not served by the next one by themselves."""
    async with lab.client.serving([(8080, "127.0.0.1", 1)]) as (_, lost):
        lab.server.attach(None)
        await lost.wait()
    with pytest.raises(ControlError, match="not connected to its network yet"):
        await lab.client.dial(Recorder, ALICE, 80, timeout=SECONDS)


async def test_status_and_down(lab: Lab) -> None:
    assert await lab.client.ask({"do": "status"}) == {"addresses": [US]}
    assert await lab.client.ask({"do": "down"}) == {"ok": True}
    assert lab.downs == [True]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b'{"do": "fly"}',
        b'{"do": "dial"}',
        b'{"do": "dial", "host": 1, "port": 80, "timeout": 1}',
        b'{"do": "dial", "host": "a", "port": 0, "timeout": 1}',
        b'{"do": "dial", "host": "a", "port": 70000, "timeout": 1}',
        b'{"do": "dial", "host": "a", "port": 80, "timeout": 1e9}',
        b'{"do": "dial", "host": "a", "port": 80, "timeout": NaN}',
        b'{"do": "serve", "forwards": [[0, "a", 1]]}',
        b'{"do": "serve", "forwards": [1]}',
        b'{"do": "serve", "forwards": [[1, "a", true, 4]]}',
        b'{"do": "serve", "forwards": [[1, "a", 4, "tcp"]]}',
        b'{"do": "serve", "forwards": [[0, "a", 4, "udp"]]}',
        b"\xff\xfe",
    ],
)
async def test_nonsense_is_refused_with_a_sentence(lab: Lab, line: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(*_path(lab))
    writer.write(line + b"\n")

    reply = json.loads(await reader.readline())

    assert reply["error"] == "refused_request"
    assert await reader.read() == b""
    writer.close()


async def test_a_request_without_an_end_is_cut(lab: Lab) -> None:
    reader, writer = await asyncio.open_unix_connection(*_path(lab))
    writer.write(b"x" * (65 << 10))
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_without_up_a_command_says_so(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ControlError, match="no `netbird-peer up` runs"):
            await ControlClient(directory).ask({"do": "status"})


async def test_an_up_that_goes_away_is_an_error_and_no_hang(tmp_path: Path) -> None:
    """The socket accepts and closes."""

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(close, tmp_path / SOCKET)
    async with server:
        with pytest.raises(ControlError, match="closed the connection"):
            await ControlClient(tmp_path).ask({"do": "status"})
        with pytest.raises((ControlError, Failed)):
            await ControlClient(tmp_path).dial(Recorder, ALICE, 80, timeout=1)


def _path(lab: Lab) -> tuple[str]:
    descriptor = os.open(lab.directory, os.O_PATH)
    return (f"/proc/self/fd/{descriptor}/{SOCKET}",)


async def _upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()
