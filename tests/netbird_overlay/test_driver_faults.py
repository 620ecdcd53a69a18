"""The driver among callbacks, protocols and clocks that are wrong: each harms its own connection only."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from netbird_overlay.driver import Driver, boot_time, open_socket
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.errors import Failed
from netbird_overlay.members import Member
from netbird_overlay.node import Node
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce

pytestmark = pytest.mark.timeout(30)

CLIENT, SERVER = "100.64.0.1", "100.64.0.2"
FAULTS = (RuntimeError("wrong"), asyncio.CancelledError(), GeneratorExit(), StopIteration())


@dataclass
class Callbacks:
    """A node's callbacks, which raise `fault` if one is set."""

    fault: BaseException | None = None
    calls: list[str] = field(default_factory=list)
    node: Node | None = None

    def handshake(self, key: bytes) -> None:
        self.calls.append("handshake")
        if self.fault is not None:
            raise self.fault
        assert self.node is not None
        self.node.on_handshake(key)

    def endpoint(self, key: bytes, endpoint: object) -> None:
        self.calls.append("endpoint")
        if self.fault is not None:
            raise self.fault


@asynccontextmanager
async def node_with(
    address: str,
    callbacks: Callbacks,
    *,
    clock: Callable[[], float] = boot_time,
    linger: float = 60.0,
    buffer: int = 131072,
    connections: int = 4096,
) -> AsyncIterator[Node]:
    engine = Engine(secrets.token_bytes(32), receive_buffer=buffer, send_buffer=buffer, max_connections=connections)
    engine.set_addresses([address])
    driver = Driver(
        engine,
        open_socket(LOOPBACK, 0),
        on_handshake=callbacks.handshake,
        on_endpoint=callbacks.endpoint,
        clock=clock,
        linger=linger,
    )
    node = callbacks.node = Node(driver, [address])
    try:
        yield node
    finally:
        node.close()
        await driver.supervise()


@asynccontextmanager
async def pair(callbacks: Callbacks, *, introduced: bool = True) -> AsyncIterator[tuple[Node, Node]]:
    """A client, and a server with these callbacks that admits it."""
    async with node_with(CLIENT, Callbacks()) as client, node_with(SERVER, callbacks) as server:
        introduce(server, client, where=False)
        if introduced:
            introduce(client, server)
        allow_everything_in(server)
        yield client, server


@pytest.fixture
async def reports() -> list[str]:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["message"])))
    return reported


async def dial(node: Node, host: str = SERVER, port: int = 80) -> Recorder:
    _, protocol = await node.dial(Recorder, host, port, timeout=10)
    assert isinstance(protocol, Recorder)
    return protocol


class Translator:
    """A NAT on loopback between one client and one server. `move` gives the client another outside port."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._inside = open_socket(LOOPBACK, 0)
        self._outside = open_socket(LOOPBACK, 0)
        self._client: tuple[str, int] | None = None
        self.port = int(self._inside.getsockname()[1])
        self._loop.add_reader(self._inside, self._out)
        self._loop.add_reader(self._outside, self._in)

    def _out(self) -> None:
        datagram, self._client = self._inside.recvfrom(65535)
        self._outside.sendto(datagram, self._server)

    def _in(self) -> None:
        datagram = self._outside.recv(65535)
        if self._client is not None:
            self._inside.sendto(datagram, self._client)

    def move(self) -> None:
        self._loop.remove_reader(self._outside)
        self._outside.close()
        self._outside = open_socket(LOOPBACK, 0)
        self._loop.add_reader(self._outside, self._in)

    def close(self) -> None:
        for sock in (self._inside, self._outside):
            self._loop.remove_reader(sock)
            sock.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_callback_that_raises_loses_no_byte(fault: BaseException, reports: list[str]) -> None:
    """A stream stays whole while the callbacks of handshakes and moves raise in the turns that carry its data."""
    callbacks = Callbacks(fault)
    async with pair(callbacks, introduced=False) as (client, server), contextlib.AsyncExitStack() as stack:
        nat = Translator((LOOPBACK, server.driver.local_port))
        stack.callback(nat.close)
        client.set_members(
            [Member(server.public_key, server.addresses)], {server.public_key: Endpoint(LOOPBACK, nat.port)}
        )
        accepting = Accepting()
        server.driver.listen(80, accepting)
        sender = await dial(client)
        receiver = await accepting.next()
        expected = b""
        for letter in b"ABC":
            sender.transport.write(bytes([letter]) * 1000)
            expected += bytes([letter]) * 1000
            assert await receiver.has(len(expected)) == expected
            nat.move()
        assert callbacks.calls.count("endpoint") >= 2
    assert any("callback" in report for report in reports)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_protocol_that_raises_ends_its_own_connection(fault: BaseException, reports: list[str]) -> None:
    """A protocol that raises on its data is reset and reported; a stream beside it in the same turns is whole."""

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise fault

    async with pair(Callbacks()) as (client, server):
        failing, accepting = Accepting(Failing), Accepting()
        server.driver.listen(81, failing)
        server.driver.listen(80, accepting)
        other, beside = await dial(client, port=81), await dial(client)
        await failing.next()
        receiver = await accepting.next()
        other.transport.write(b"x" * 1000)
        beside.transport.write(b"y" * 1000)
        assert await receiver.has(1000) == b"y" * 1000
        assert isinstance(await other.lost, ConnectionResetError)
        assert reports


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_factory_that_raises_ends_its_own_connection(fault: BaseException, reports: list[str]) -> None:
    """A factory that raises, a cancellation included, resets its own connection; the listener and dials go on."""

    def failing() -> Recorder:
        raise fault

    async with pair(Callbacks()) as (client, server):
        server.driver.listen(81, failing)
        server.driver.listen(80, Recorder)
        assert isinstance(await (await dial(client, port=81)).lost, ConnectionResetError)
        expected = RuntimeError if isinstance(fault, RuntimeError) else Failed
        with pytest.raises(expected):
            await client.dial(failing, SERVER, 80, timeout=10)
        await dial(client)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_an_event_that_cannot_be_delivered_ends_its_connection(fault: BaseException, reports: list[str]) -> None:
    """A connection whose event is lost by a failure is reset, so that it does not go on without; others go on."""

    def admit(key: bytes, address: str) -> bool:
        raise fault

    async with pair(Callbacks()) as (client, server):
        accepting = Accepting()
        server.driver.listen(81, Recorder, admit=admit)
        server.driver.listen(80, accepting)
        beside = await dial(client)
        receiver = await accepting.next()
        lost, _ = await asyncio.gather(dial(client, port=81), dial(client))
        assert isinstance(await lost.lost, ConnectionResetError)
        beside.transport.write(b"y")
        assert await receiver.has(1) == b"y"
        assert any("Accepted" in report for report in reports)


async def test_a_reader_that_takes_nothing_does_not_keep_a_closed_connection() -> None:
    """A closed connection whose other end takes no data is reset after the linger time, and its buffers are freed."""
    async with node_with(CLIENT, Callbacks()) as client, node_with(SERVER, Callbacks(), linger=0.2) as server:
        introduce(server, client, where=False)
        introduce(client, server)
        allow_everything_in(server)
        accepting = Accepting()
        server.driver.listen(80, accepting)
        reader = await dial(client)
        reader.transport.pause_reading()
        writer = await accepting.next()
        writer.transport.write(b"x" * 600_000)
        writer.transport.close()
        assert writer.transport.get_write_buffer_size() > 0
        assert isinstance(await writer.lost, TimeoutError)
        assert writer.transport.get_write_buffer_size() == 0
        reader.transport.resume_reading()
        assert isinstance(await reader.lost, ConnectionResetError)


async def test_sessions_age_while_the_machine_sleeps() -> None:
    """A suspend ends the sessions that became too old in it, as at the other end; the next dial makes a new one."""
    slept = 0.0

    def clock() -> float:
        return boot_time() + slept

    async with node_with(CLIENT, Callbacks(), clock=clock) as client, node_with(SERVER, Callbacks()) as server:
        introduce(server, client, where=False)
        introduce(client, server)
        allow_everything_in(server)
        server.driver.listen(80, Recorder)
        await dial(client)
        before = client.driver.engine.counters()["handshakes"]
        await dial(client)
        assert client.driver.engine.counters()["handshakes"] == before
        slept = 600.0
        client.driver.touch()
        await asyncio.sleep(0)
        await dial(client)
        assert client.driver.engine.counters()["handshakes"] == before + 1


async def test_closing_resets_every_connection() -> None:
    """A driver with more connections than one turn has datagrams sends a reset for each when it closes."""
    count = 2200
    client_callbacks, server_callbacks = Callbacks(), Callbacks()
    async with (
        node_with(CLIENT, client_callbacks, buffer=4096) as client,
        node_with(SERVER, server_callbacks, buffer=4096) as server,
    ):
        introduce(server, client, where=False)
        introduce(client, server)
        allow_everything_in(server)
        server.driver.listen(80, Recorder)
        await dial(client)
        for _ in range(count // 100):
            await asyncio.gather(*(dial(client) for _ in range(100)))
        while server.driver.engine.counters()["accepted"] <= count:  # noqa: ASYNC110 - counted without an event
            await asyncio.sleep(0.001)
        before = server.driver.engine.counters()["datagrams_out"]
        server.close()
        assert server.driver.engine.counters()["datagrams_out"] - before >= count
