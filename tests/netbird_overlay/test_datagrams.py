"""UDP inside the overlay through asyncio: two nodes on loopback, and protocols that do as protocols do."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netbird_overlay.datagrams import FLOW_SECONDS, MAX_FLOWS, Sockets
from netbird_overlay.driver import AlreadyListening
from netbird_overlay.engine import Engine
from netbird_overlay.errors import Failed, Unreachable
from netbird_overlay.node import Node
from netbird_overlay.testing import introduce, loopback_node

HERE, THERE = "100.64.0.1", "100.64.0.2"


class Datagrams(asyncio.DatagramProtocol):
    """Records what it gets, and sends it back with `echo`."""

    def __init__(self, *, echo: bool = False, failing: bool = False) -> None:
        self.echo, self.failing = echo, failing
        self.received: asyncio.Queue[tuple[bytes, tuple[str | Any, int]]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.received.put_nowait((data, addr))
        if self.failing:
            raise RuntimeError("the protocol is wrong")
        if self.echo and self.transport is not None:
            self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@asynccontextmanager
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    async with loopback_node(HERE) as here, loopback_node(THERE) as there:
        introduce(here, there)
        introduce(there, here)
        for node in (here, there):
            node.driver.engine.set_inbound([("0.0.0.0/0", 17, 1, 65535)])
        yield here, there


async def test_flows_at_a_listening_port_keep_a_lazy_peer_awake() -> None:
    """Both ends count the flow as use of the peer, without any connection."""
    async with nodes() as (here, there):
        there.listen_datagrams(53, lambda: Datagrams(echo=True))
        mine = Datagrams()
        await here.datagrams(lambda: mine, THERE, 53, timeout=10)
        assert mine.transport is not None
        mine.transport.sendto(b"hello")
        await mine.received.get()
        assert here.in_use(there.public_key)
        assert there.in_use(here.public_key)


class Clock(asyncio.SelectorEventLoop):
    """A loop that never runs, whose time a test sets."""

    now = 1000.0

    def time(self) -> float:
        return self.now


def test_flows_end_by_silence_and_are_bounded() -> None:
    clock = Clock()
    try:
        sockets = Sockets(NoSender(), clock)
        for number in range(MAX_FLOWS + 5):
            sockets.note(f"address {number}")
        sockets.note("address 5")
        sockets.note("another")
        addresses = list(sockets.remotes())
        assert len(addresses) == MAX_FLOWS
        assert addresses[0] == "address 7"
        assert addresses[-2:] == ["address 5", "another"]
        clock.now += FLOW_SECONDS / 2
        sockets.note("another")
        clock.now += FLOW_SECONDS / 2
        assert list(sockets.remotes()) == ["another"]
    finally:
        clock.close()


class NoSender:
    """The driver of no engine."""

    @property
    def engine(self) -> Engine:
        raise NotImplementedError

    def touch(self) -> None:
        raise NotImplementedError


async def test_datagrams_are_echoed_and_keep_their_borders() -> None:
    """Each datagram arrives as it was sent, empty ones too, and the answer comes from the port that was asked."""
    async with nodes() as (here, there):
        there.driver.datagram_endpoint(lambda: Datagrams(echo=True), port=53)
        transport, protocol = here.driver.datagram_endpoint(Datagrams, remote=(THERE, 53))
        assert isinstance(protocol, Datagrams)
        assert transport.get_extra_info("peername") == (THERE, 53)
        assert transport.get_extra_info("sockname")[0] == HERE
        for data in (b"one", b"", bytes(1252)):
            transport.sendto(data)
            assert await protocol.received.get() == (data, (THERE, 53))


async def test_admission_is_asked_for_each_datagram() -> None:
    """A datagram whose peer `admit` refuses reaches no protocol."""
    asked: list[tuple[bytes, str]] = []

    def admit(peer: bytes, address: str) -> bool:
        asked.append((peer, address))
        return len(asked) > 1

    async with nodes() as (here, there):
        _, server = there.driver.datagram_endpoint(Datagrams, port=53, admit=admit)
        assert isinstance(server, Datagrams)
        transport, _ = here.driver.datagram_endpoint(Datagrams, remote=(THERE, 53))
        transport.sendto(b"refused")
        transport.sendto(b"admitted")
        assert (await server.received.get())[0] == b"admitted"
        assert asked == [(here.public_key, HERE)] * 2


async def test_protocol_that_raises_loses_only_its_datagram() -> None:
    """A protocol's exception is reported; its next datagram and other sockets' arrive."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with nodes() as (here, there):
        _, wrong = there.driver.datagram_endpoint(lambda: Datagrams(failing=True), port=53)
        _, right = there.driver.datagram_endpoint(Datagrams, port=54)
        assert isinstance(wrong, Datagrams)
        assert isinstance(right, Datagrams)
        for port in (53, 54, 53):
            here.driver.datagram_endpoint(Datagrams, remote=(THERE, port))[0].sendto(b"x")
        for server in (wrong, right, wrong):
            await server.received.get()
        assert [str(context["exception"]) for context in reported] == ["the protocol is wrong"] * 2


async def test_what_cannot_be_sent_is_an_error_of_the_protocol() -> None:
    """A closed port, an unknown address and a datagram that is too long are errors for the protocol; nothing closes."""
    async with nodes() as (here, there):
        transport, protocol = here.driver.datagram_endpoint(Datagrams, remote=(THERE, 53))
        assert isinstance(protocol, Datagrams)
        transport.sendto(b"anybody?")
        assert isinstance(await protocol.errors.get(), ConnectionRefusedError)
        transport.sendto(bytes(1253))
        assert getattr(await protocol.errors.get(), "errno", 0) == errno.EMSGSIZE
        listening, server = here.driver.datagram_endpoint(Datagrams, port=53)
        assert isinstance(server, Datagrams)
        listening.sendto(b"x", ("100.64.0.200", 53))
        assert getattr(await server.errors.get(), "errno", 0) == errno.EHOSTUNREACH
        with pytest.raises(ValueError, match="address"):
            listening.sendto(b"x")
        with pytest.raises(ValueError, match="only"):
            transport.sendto(b"x", ("100.64.0.3", 53))
        with pytest.raises(TypeError):
            transport.sendto("text")  # type: ignore[arg-type]
        assert not transport.is_closing()
        assert not there.driver.engine.counters()["internal_error"]


async def test_sockets_end_once() -> None:
    """`close` and the end of the tunnel call `connection_lost` once, later, and the port is free again."""
    async with nodes() as (here, _):
        transport, protocol = here.driver.datagram_endpoint(Datagrams, port=53)
        with pytest.raises(AlreadyListening):
            here.driver.datagram_endpoint(Datagrams, port=53)
        assert isinstance(protocol, Datagrams)
        transport.close()
        transport.abort()
        transport.sendto(b"ignored", (THERE, 53))
        assert not protocol.lost.done()
        assert await protocol.lost is None
        _, again = here.driver.datagram_endpoint(Datagrams, port=53)
        _, connected = here.driver.datagram_endpoint(Datagrams, remote=(THERE, 53))
        assert isinstance(again, Datagrams)
        assert isinstance(connected, Datagrams)
        here.driver.engine.set_addresses(["100.64.0.9"])
        here.driver.touch()
        assert isinstance(await connected.lost, ConnectionAbortedError)
    assert isinstance(await again.lost, ConnectionAbortedError)
    with pytest.raises(Failed):
        here.driver.datagram_endpoint(Datagrams, port=54)


async def test_factory_that_raises_leaves_no_socket() -> None:
    """The caller gets the exception, and the port stays free; so does a remote without a route."""

    def wrong() -> asyncio.DatagramProtocol:
        raise RuntimeError("no protocol today")

    async with nodes() as (here, _):
        with pytest.raises(RuntimeError, match="today"):
            here.driver.datagram_endpoint(wrong, port=53)
        with pytest.raises(Unreachable):
            here.driver.datagram_endpoint(Datagrams, remote=("100.64.0.200", 53))
        assert here.driver.engine.counters()["udp_sockets"] == 0
