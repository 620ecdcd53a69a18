"""Allocations over real sockets: while a session needs one, at servers that refuse, hang, lie and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.candidates import is_usable
from netbird_overlay.members import IceCredentials
from netbird_overlay.paths.effects import StartIce
from netbird_overlay.paths.servers import TurnServer
from netbird_overlay.paths.turn_connection import TurnAddress, parse_turn_uri
from netbird_overlay.paths.turn_servers import TurnServers
from netbird_overlay.stun.messages import Kind, Message, encode, parse
from netbird_overlay.stun.turn_messages import Attribute, Method, TurnMessage, frame_length
from tests.netbird_overlay.paths.test_parts import A, B, Bench
from tests.netbird_overlay.turn_double import PASSWORD, RELAYED, USER, TurnDouble

PEER = Endpoint("198.51.100.5", 51820)


class Listening(asyncio.DatagramProtocol, asyncio.Protocol):
    """The double at a UDP or TCP port. It answers the client that sent last."""

    def __init__(self, double: TurnDouble, *, stream: bool) -> None:
        self.double, self.stream = double, stream
        self.changed = asyncio.Event()
        self.received = b""
        self.send: Callable[[bytes], None] = lambda datagram: None
        self.connections: list[asyncio.Transport] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.stream:
            self.connections.append(transport)
            self.send = transport.write

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.send = lambda datagram: self.transport.sendto(datagram, addr)
        self.take(data)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 4 and len(self.received) >= (size := frame_length(self.received[:4])):
            frame, self.received = self.received[:size], self.received[size:]
            self.take(frame)

    def take(self, datagram: bytes) -> None:
        for answer in self.double.receive(datagram):
            self.send(answer)
        self.changed.set()


@asynccontextmanager
async def listening(double: TurnDouble, *, stream: bool = False) -> AsyncIterator[tuple[str, Listening]]:
    loop = asyncio.get_running_loop()
    protocol = Listening(double, stream=stream)
    if stream:
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        close: Callable[[], None] = server.close
    else:
        transport, _ = await loop.create_datagram_endpoint(lambda: protocol, ("127.0.0.1", 0))
        port = transport.get_extra_info("sockname")[1]
        close = transport.close
    try:
        yield f"turn:127.0.0.1:{port}?transport={'tcp' if stream else 'udp'}", protocol
    finally:
        for each in protocol.connections:
            each.close()
        close()


@dataclass
class Client:
    """Running allocations, with what they reported."""

    servers: TurnServers = field(init=False)
    addresses: asyncio.Queue[Endpoint] = field(default_factory=asyncio.Queue)
    datagrams: asyncio.Queue[tuple[bytes, Endpoint, Endpoint]] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def client(*uris: str, user: str = USER) -> AsyncIterator[Client]:
    running = Client()
    running.servers = TurnServers(
        usable=is_usable,
        on_allocated=running.addresses.put_nowait,
        on_datagram=lambda *each: running.datagrams.put_nowait(each),
    )
    running.servers.use([TurnServer(uri, user, PASSWORD) for uri in uris])
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(running.servers.run())
        try:
            yield running
        finally:
            task.cancel()


async def until(protocol: Listening, predicate: Callable[[], bool]) -> None:
    while not predicate():
        protocol.changed.clear()
        await protocol.changed.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_allocation_is_made_when_a_session_needs_it_and_given_back_at_the_end(stream: bool) -> None:
    double = TurnDouble()
    async with listening(double, stream=stream) as (uri, protocol):
        async with client(uri) as running:
            assert double.seen == []
            assert running.servers.need(b"a") == []
            assert await running.addresses.get() == RELAYED
            assert running.servers.need(b"b") == [RELAYED]
            running.servers.send(b"first", PEER, RELAYED)
            await until(protocol, lambda: PEER.host in double.allowed)
            protocol.send(double.data(b"in", PEER))  # behind the answer, so that the client has read that
            assert await running.datagrams.get() == (b"in", PEER, RELAYED)
            running.servers.send(b"second", PEER, RELAYED, channel=True)
            await until(protocol, lambda: bool(double.relayed_out and double.channels))
            protocol.send(double.by_channel(b"odd", PEER))
            assert await running.datagrams.get() == (b"odd", PEER, RELAYED)
            running.servers.send(b"third", PEER, RELAYED, channel=True)
            await until(protocol, lambda: len(double.relayed_out) == 2)
            assert double.relayed_out == [(b"second", PEER, False), (b"third", PEER, True)]
        await until(protocol, lambda: bool(double.of(Method.REFRESH)))
        assert double.of(Method.REFRESH)[0].lifetime() == 0


async def test_two_servers_do_not_relay_at_the_same_address() -> None:
    refused = TurnDouble()
    async with (
        listening(TurnDouble()) as (first, _),
        listening(refused) as (second, protocol),
        client(first) as running,
    ):
        running.servers.need(b"a")
        assert await running.addresses.get() == RELAYED
        running.servers.use([TurnServer(uri, USER, PASSWORD) for uri in (first, second)])
        await until(protocol, lambda: bool(refused.of(Method.REFRESH)))
        assert running.servers.need(b"b") == [RELAYED]
        assert running.addresses.empty()


async def test_allocation_that_ends_is_made_again_with_the_newest_credentials() -> None:
    double = TurnDouble()
    async with listening(double, stream=True) as (uri, protocol), client(uri, user="0:expired") as running:
        running.servers.need(b"a")
        await until(protocol, lambda: len(double.of(Method.ALLOCATE)) == 2)
        running.servers.use([TurnServer(uri, USER, PASSWORD)])
        assert await running.addresses.get() == RELAYED
        users = {each.attributes.get(Attribute.USERNAME) for each in double.of(Method.ALLOCATE)}
        assert users == {None, b"0:expired", USER.encode()}


async def test_running_allocation_outlives_new_credentials() -> None:
    double = TurnDouble()
    async with listening(double) as (uri, protocol), client(uri) as running:
        running.servers.need(b"a")
        await running.addresses.get()
        running.servers.use([TurnServer(uri, "2999999999:proxy", "other")])
        running.servers.send(b"x", PEER, RELAYED)
        await until(protocol, lambda: PEER.host in double.allowed)
        assert running.servers.need(b"a") == [RELAYED]
        assert len(double.of(Method.ALLOCATE)) == 2


async def test_stream_without_frames_ends() -> None:
    double = TurnDouble()

    def answer(message: TurnMessage) -> Sequence[bytes]:
        double.answer = double.honest
        return [b"\xff" * 64]

    double.answer = answer
    async with listening(double, stream=True) as (uri, _), client(uri) as running:
        running.servers.need(b"a")
        assert await running.addresses.get() == RELAYED, "the next attempt is a stream of its own"
        assert running.servers.counters["allocations_ended"] == 1


async def test_server_without_an_answer_does_not_hold_up_another() -> None:
    silent = TurnDouble()
    silent.answer = lambda message: []
    async with (
        listening(silent) as (first, _),
        listening(TurnDouble()) as (second, _),
        client("turn:host.invalid:1", first, second) as running,
    ):
        running.servers.use([TurnServer(uri, USER, PASSWORD) for uri in (first, second)])
        running.servers.need(b"a")
        assert await running.addresses.get() == RELAYED


async def test_flood_of_datagrams_leaves_nothing_behind() -> None:
    double = TurnDouble()
    async with listening(double) as (uri, protocol), client(uri) as running:
        running.servers.need(b"a")
        await running.addresses.get()
        for number in range(2000):
            protocol.send(double.data(b"x" * 1000, Endpoint(f"198.51.{number % 250}.1", 1)))
        running.servers.send(b"x", PEER, RELAYED)
        await until(protocol, lambda: PEER.host in double.allowed)
        assert running.datagrams.empty()


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("turn:turn.example", TurnAddress("turn.example", 3478, "udp")),
        ("turn:turn.example:5?transport=udp", TurnAddress("turn.example", 5, "udp")),
        ("turn:[2001:db8::1]:5?transport=tcp", TurnAddress("2001:db8::1", 5, "tcp")),
        ("turns:turn.example", TurnAddress("turn.example", 5349, "tls")),
        ("turns:turn.example:443?transport=tcp", TurnAddress("turn.example", 443, "tls")),
        ("turns:turn.example?transport=udp", None),
        ("turn:turn.example?transport=sctp", None),
        ("stun:turn.example", None),
        ("turn:", None),
        ("", None),
    ],
)
def test_uris_of_turn_servers(uri: str, address: TurnAddress | None) -> None:
    assert parse_turn_uri(uri) == address


@given(st.text(max_size=40))
def test_no_uri_makes_the_parser_raise(text: str) -> None:
    parse_turn_uri(text)
    parse_turn_uri("turn:" + text)


# Sessions ------------------------------------------------------------------------------------------------------------


class Relayed:
    """Relayed addresses of a bench; datagrams from them are collected."""

    def __init__(self, *addresses: Endpoint) -> None:
        self.addresses = addresses
        self.keys: set[bytes] = set()
        self.sent: list[tuple[bytes, Endpoint, Endpoint]] = []

    def need(self, key: bytes) -> Sequence[Endpoint]:
        self.keys.add(key)
        return self.addresses

    def release(self, key: bytes) -> None:
        self.keys.discard(key)

    def send(self, datagram: bytes, endpoint: Endpoint, via: Endpoint) -> None:
        self.sent.append((datagram, endpoint, via))


def bench(*addresses: Endpoint) -> tuple[Bench, Relayed]:
    relayed = Relayed(*addresses)
    return Bench("10.0.0.1", turns=relayed), relayed


def start(*, relayed: bool = True, key: IceCredentials = A) -> StartIce:
    return StartIce(1, key, B, controlling=True, relayed=relayed)


def test_relayed_addresses_are_candidates_of_sessions_that_need_them() -> None:
    own, relayed = bench(RELAYED)
    own.sessions.start(b"direct", start(relayed=False), 0.0)
    assert (len(own.lines), relayed.keys) == (1, set())
    own.sessions.start(b"b", start(), 0.0)
    assert relayed.keys == {b"b"}
    assert f"{RELAYED.host} {RELAYED.port} typ relay raddr 0.0.0.0 rport 0" in own.lines[-1]
    assert "10.0.0.1" not in own.lines[-1]
    own.sessions.add_remote(b"b", 1, f"1 1 udp 1 {PEER.host} {PEER.port} typ host", 0.0)
    assert {via for _, endpoint, via in relayed.sent if endpoint == PEER} == {RELAYED}
    own.sessions.stop(b"b", 1)
    assert relayed.keys == set()


def test_relayed_address_that_comes_later_joins_sessions_that_began_lately() -> None:
    own, relayed = bench()
    own.sessions.start(b"b", start(), 0.0)
    own.sessions.add_remote(b"b", 1, f"1 1 udp 1 {PEER.host} {PEER.port} typ host", 0.0)
    own.sessions.add_relayed(RELAYED, 1.0)
    assert [via for _, _, via in relayed.sent] == [RELAYED]
    own.sessions.add_relayed(Endpoint("203.0.113.8", 1), 6.0)
    assert len(own.lines) == 2


def test_answer_by_another_way_than_the_check_does_not_count() -> None:
    own, relayed = bench(RELAYED)
    own.sessions.start(b"b", start(), 0.0)
    own.sessions.add_remote(b"b", 1, f"1 1 udp 1 {PEER.host} {PEER.port} typ host", 0.0)
    (check, _, _) = relayed.sent[0]
    answer = encode(Message(Kind.SUCCESS, parse(check).transaction, mapped=RELAYED), B.pwd)
    own.sessions.receive(answer, PEER, 0.1)
    assert own.sessions.owner(PEER, RELAYED) is None
    own.sessions.receive(answer, PEER, 0.1, RELAYED)
    assert own.sessions.owner(PEER, RELAYED) == b"b"
    own.sessions.stop(b"b", 1)
    assert own.sessions.owner(PEER, RELAYED) is None, "the end of the session forgets where its peer was"


def test_pair_by_a_relay_waits_for_a_better_one() -> None:
    own, relayed = bench(RELAYED)
    own.sessions.start(b"b", start(), 0.0)
    own.sessions.add_remote(b"b", 1, f"1 1 udp 1 {PEER.host} {PEER.port} typ host", 0.0)
    now, first = 0.0, None
    while now < 3.0:
        for check, _, _ in relayed.sent:
            message = parse(check)
            if message.use_candidate and first is None:
                first = now
            answer = encode(Message(Kind.SUCCESS, message.transaction, mapped=RELAYED), B.pwd)
            own.sessions.receive(answer, PEER, now, RELAYED)
        relayed.sent.clear()
        now += 0.1
        own.sessions.advance(now)
    assert first is not None
    assert first >= 2.0
    assert own.selected == [(b"b", 1)]


def test_strangers_at_a_relayed_address_own_nothing() -> None:
    own, _ = bench(RELAYED)
    own.sessions.start(b"b", start(), 0.0)
    request = Message(Kind.REQUEST, bytes(12), username=f"{A.ufrag}:{B.ufrag}", priority=1, controlled=1)
    own.sessions.receive(encode(request, "guess"), PEER, 0.0, RELAYED)
    assert own.sessions.owner(PEER, RELAYED) is None
    own.sessions.receive(encode(request, A.pwd), PEER, 0.0, Endpoint("203.0.113.99", 1))
    assert own.sessions.owner(PEER, Endpoint("203.0.113.99", 1)) is None, "not an address of ours"
    own.sessions.receive(
        encode(Message(Kind.REQUEST, b"x" * 12, f"{A.ufrag}:{B.ufrag}", 1, controlled=1), A.pwd), PEER, 0, RELAYED
    )
    assert own.sessions.owner(PEER, RELAYED) == b"b"
