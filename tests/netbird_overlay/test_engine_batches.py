"""Batches of datagrams on real sockets: the result is the same however the kernel cuts, joins or refuses them."""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbird_overlay.engine import Connected, Data, Endpoint, Engine, Event, Writable

LOOPBACK = "127.0.0.1"
UDP_SEGMENT, SO_NO_CHECK = 103, 11
SERVER, CLIENT = "100.64.0.1", "100.64.0.2"


class Node:
    """An engine with a socket, which runs turns by hand.

    Args:
        runs: the kernel sends runs of datagrams for this socket. Without checksums it refuses them.
        aggregate: the kernel delivers datagrams in runs.
        budget: maximum number of datagrams a turn.
    """

    def __init__(self, address: str, *, runs: bool = True, aggregate: bool = True, budget: int = 128) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if not runs:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        self.socket.bind((LOOPBACK, 0))
        self.engine = Engine(secrets.token_bytes(32))
        self.engine.set_addresses([address])
        self.engine.set_inbound([("0.0.0.0/0", 6, 1, 65535)])
        if aggregate:
            assert self.engine.aggregate(self.socket.fileno())
        self.address, self.budget = address, budget
        self.events: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.unsent: dict[int, tuple[bytes, int]] = {}
        self.collected = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(*self.socket.getsockname())

    def introduce(self, other: Node, *, where: bool) -> None:
        self.engine.set_peer(
            other.engine.public_key, [f"{other.address}/32"], endpoint=other.endpoint if where else None
        )

    def turn(self) -> None:
        turn = self.engine.turn(self.socket.fileno(), time.monotonic(), self.budget)
        self.collected += turn.may_collect
        for event in turn.events:
            if isinstance(event, Data):
                self.received.setdefault(event.conn, bytearray()).extend(event.data)
            elif isinstance(event, Writable):
                self.write(event.conn)
            else:
                self.events.append(event)

    def write(self, conn: int, data: bytes = b"") -> None:
        data, start = (data, 0) if data else self.unsent.pop(conn, (b"", 0))
        taken = start + self.engine.write(conn, data, start)
        if taken < len(data):
            self.unsent[conn] = (data, taken)


def run(nodes: list[Node], until: Callable[[], bool]) -> None:
    """Run turns of all nodes until the condition holds. The test's own timeout ends a stall."""
    while not until():
        for node in nodes:
            node.turn()
        if not any(node.engine.pending for node in nodes):
            wait = max(0.0, min(node.engine.deadline for node in nodes) - time.monotonic())
            select.select([node.socket for node in nodes], [], [], min(wait, 0.05))


@contextmanager
def server_with(*clients: Node, **options: bool | int) -> Iterator[Node]:
    server = Node(SERVER, **options)  # type: ignore[arg-type]
    try:
        server.engine.listen(80)
        for client in clients:
            server.introduce(client, where=False)
            client.introduce(server, where=True)
        yield server
    finally:
        for node in (server, *clients):
            node.socket.close()


def connect(client: Node, server: Node, others: list[Node]) -> int:
    conn = client.engine.connect(SERVER, 80, time.monotonic())
    run([client, server, *others], lambda: any(isinstance(event, Connected) for event in client.events))
    return conn


@pytest.mark.timeout(60)
@settings(max_examples=25, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=50).map(lambda seed: seed * (400_000 // len(seed))),
    budgets=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    runs=st.tuples(st.booleans(), st.booleans()),
    aggregate=st.tuples(st.booleans(), st.booleans()),
)
def test_every_cut_of_the_batches_gives_the_same(
    data: bytes, budgets: tuple[int, int], runs: tuple[bool, bool], aggregate: tuple[bool, bool]
) -> None:
    """The same bytes arrive with any budget, with runs or without at either end, and nothing is counted as wrong."""
    client = Node(CLIENT, runs=runs[0], aggregate=aggregate[0], budget=budgets[0])
    with server_with(client, runs=runs[1], aggregate=aggregate[1], budget=budgets[1]) as server:
        conn = connect(client, server, [])
        client.write(conn, data)
        run([client, server], lambda: sum(map(len, server.received.values())) >= len(data))
        assert list(server.received.values()) == [data]
        for node in (client, server):
            counters = node.engine.counters()
            wrong = ("malformed", "decrypt_failed", "replayed", "bad_source", "bad_packet", "send_failed")
            assert {name: counters[name] for name in wrong} == dict.fromkeys(wrong, 0)


@pytest.mark.timeout(30)
def test_runs_that_the_kernel_refuses_are_sent_one_by_one() -> None:
    """A refusal of a run costs no datagram: the socket sends them one by one from then on."""
    client = Node(CLIENT, runs=False)
    with server_with(client) as server:
        conn = connect(client, server, [])
        client.write(conn, bytes(100_000))
        total = lambda: sum(map(len, server.received.values()))  # noqa: E731
        run([client, server], lambda: total() >= 100_000 or client.engine.counters()["send_failed"] > 0)
        assert client.engine.counters()["send_failed"] == 0
        assert total() == 100_000


@pytest.mark.timeout(30)
def test_a_bulk_transfer_lets_datagrams_collect_and_an_exchange_does_not() -> None:
    """Turns report that datagrams may collect during a transfer of megabytes, and never for small messages."""
    client = Node(CLIENT, aggregate=False)
    with server_with(client, aggregate=False) as server:
        conn = connect(client, server, [])
        for number in range(1, 50):
            client.write(conn, b"x" * 100)
            size = number * 100
            run([client, server], lambda size=size: sum(map(len, server.received.values())) >= size)  # type: ignore[misc]
        assert client.collected == server.collected == 0
        client.write(conn, bytes(8_000_000))
        run([client, server], lambda: sum(map(len, server.received.values())) >= 8_000_000)
        assert client.collected > 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [1, 7, 31, 100, 1472])
@pytest.mark.parametrize("aggregate", [False, True])
def test_runs_of_any_size_are_counted_and_harm_nobody(size: int, aggregate: bool) -> None:
    """A stranger's runs of datagrams of nonsense sizes count datagram by datagram; a peer's stream goes on whole."""
    client = Node(CLIENT)
    with (
        server_with(client, aggregate=aggregate) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        conn = connect(client, server, [])
        stranger.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
        stranger.bind((LOOPBACK, 0))
        nonsense = os.urandom(size * 40 + size // 2)
        address = server.socket.getsockname()
        before = server.engine.counters()["datagrams_in"]
        for _ in range(5):
            stranger.sendto(nonsense, address)
        run([server], lambda: server.engine.counters()["datagrams_in"] >= before + 5 * (40 + (size > 1)))
        client.write(conn, b"good" * 50_000)
        run([client, server], lambda: sum(map(len, server.received.values())) >= 200_000)
        assert list(server.received.values()) == [b"good" * 50_000]


@pytest.mark.timeout(30)
def test_peers_in_one_batch_are_kept_apart() -> None:
    """Datagrams of several peers in one batch reach the connections of their own peers only."""
    clients = [Node(f"100.64.0.{number}") for number in range(2, 6)]
    with server_with(*clients) as server:
        conns = [connect(client, server, clients) for client in clients]
        streams = [os.urandom(200_000) for _ in clients]
        for client, conn, stream in zip(clients, conns, streams, strict=True):
            client.write(conn, stream)
        total = sum(map(len, streams))
        run([*clients, server], lambda: sum(map(len, server.received.values())) >= total)
        assert sorted(map(bytes, server.received.values())) == sorted(streams)
        assert server.engine.counters()["bad_source"] == 0


@pytest.mark.timeout(30)
def test_a_run_of_one_sender_with_a_peer_s_datagrams_inside_proves_nothing() -> None:
    """A stranger who puts a peer's recorded datagrams into a run gains nothing: they are counted as replays."""
    client = Node(CLIENT, runs=False)
    with server_with(client) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        conn = connect(client, server, [])
        client.engine.write(conn, b"z" * 3600)
        client.engine.advance(time.monotonic())
        recorded = [datagram for datagram, _ in client.engine.transmits()]
        size = max(map(len, recorded))
        full = [datagram for datagram in recorded if len(datagram) == size]
        for datagram in full:
            client.socket.sendto(datagram, server.socket.getsockname())
        run([server], lambda: sum(map(len, server.received.values())) > 0)
        before = bytes(next(iter(server.received.values())))
        stranger.setsockopt(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=i", size))
        stranger.sendto(b"".join(full), server.socket.getsockname())
        run([server], lambda: server.engine.counters()["replayed"] >= len(full))
        assert bytes(next(iter(server.received.values()))) == before
        state = server.engine.peer(client.engine.public_key)
        assert state is not None
        assert state.endpoint == client.endpoint
