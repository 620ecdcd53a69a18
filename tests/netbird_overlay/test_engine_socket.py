"""The engine's turns on a UDP socket: budgets of datagrams and handshakes, and the address that answers leave from."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

import pytest

from netbird_overlay.engine import Endpoint, Engine

LOOPBACK = "127.0.0.1"
UDP_SEGMENT = 103
KEY = bytes(range(32))


def udp(host: str, family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, 0))
    return sock


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with udp(LOOPBACK) as sock:
        yield sock


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with udp(LOOPBACK) as sock:
        yield sock


def initiations(public_key: bytes, number: int) -> list[bytes]:
    """Handshakes of a stranger with the engine that has this key."""
    stranger = Engine(secrets.token_bytes(32))
    stranger.set_peer(public_key, [], endpoint=Endpoint("192.0.2.1", 1))
    for _ in range(number):
        stranger.handshake(public_key)
    return [datagram for datagram, _ in stranger.transmits()]


def test_a_run_keeps_to_the_budget(server: socket.socket, client: socket.socket) -> None:
    """Runs that the kernel hands over as one message are split at the budget; the rest comes with the next turns."""
    engine = Engine(KEY)
    assert engine.aggregate(server.fileno())
    client.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 100)
    for _ in range(10):
        client.sendto(b"\4\0\0\0" + bytes(96) + (b"\4\0\0\0" + bytes(96)) * 59, server.getsockname())
    counts = []
    while True:
        result = engine.pump(server.fileno(), float(len(counts)), 50)
        counts.append(result.received)
        if not result.more:
            break
    assert max(counts) == 50
    assert sum(counts) == 600
    assert engine.counters()["unknown_session"] == 600


def test_a_turn_has_a_budget_of_handshakes(server: socket.socket, client: socket.socket) -> None:
    """A burst of handshakes is computed in several turns, eight in each; none is lost, and other work goes on."""
    engine = Engine(KEY, handshakes_per_second=1000)
    engine.aggregate(server.fileno())
    for datagram in initiations(engine.public_key, 30):
        client.sendto(datagram, server.getsockname())
    computed = []
    while True:
        result = engine.pump(server.fileno(), 1.0 + len(computed), 128)
        computed.append(engine.counters()["unknown_key"])
        if not result.more:
            break
    assert computed[:4] == [8, 16, 24, 30]


def test_a_flood_of_proved_handshakes_costs_a_turn_little(server: socket.socket, client: socket.socket) -> None:
    """A host that answers its cookie and sends 500 handshakes in runs makes one turn compute its burst, not more."""
    engine = Engine(KEY, handshakes_per_second=0)
    engine.aggregate(server.fileno())
    stranger = Engine(secrets.token_bytes(32))
    stranger.set_peer(engine.public_key, [], endpoint=Endpoint(*server.getsockname()))
    stranger.handshake(engine.public_key)
    ((first, _),) = stranger.transmits()
    client.sendto(first, server.getsockname())
    engine.pump(server.fileno(), 1.0)
    stranger.receive(client.recv(2048), Endpoint(*server.getsockname()), 1.0)
    for _ in range(500):
        stranger.handshake(engine.public_key)
    datagrams = [datagram for datagram, _ in stranger.transmits()]
    client.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 148)
    for start in range(0, 500, 50):
        client.sendto(b"".join(datagrams[start : start + 50]), server.getsockname())
    while engine.pump(server.fileno(), 1.0, 128).more:
        pass
    counters = engine.counters()
    assert counters["datagrams_in"] == 501
    assert counters["unknown_key"] == 5
    assert counters["rate_limited"] == 1 + 495


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("0.0.0.0", socket.AF_INET, "127.0.0.2"),
        ("::", socket.AF_INET6, "127.0.0.2"),
        ("::", socket.AF_INET6, "::1"),
    ],
)
def test_answers_leave_from_the_address_that_was_asked(host: str, family: int, address: str) -> None:
    """On a socket for all addresses, a peer is answered from the address that it sent to, not from the route's."""
    with udp(host, family) as server, udp("::1", socket.AF_INET6) if ":" in address else udp(LOOPBACK) as client:
        engine, peer = Engine(KEY), Engine(secrets.token_bytes(32))
        peer.set_peer(engine.public_key, ["100.64.0.1"], endpoint=Endpoint(address, server.getsockname()[1]))
        engine.set_peer(peer.public_key, ["100.64.0.2"])
        peer.handshake(engine.public_key)
        ((greeting, _),) = peer.transmits()
        engine.pump(server.fileno(), 1.0, 0)
        client.sendto(greeting, (address, server.getsockname()[1]))
        assert engine.pump(server.fileno(), 1.0).sent == 1
        response, source = client.recvfrom(2048)
        assert (response[0], source[0]) == (2, address)
        # Later datagrams, which nobody asked for, leave from there too.
        peer.receive(response, Endpoint(address, source[1]), 1.0)
        for datagram, _ in peer.transmits():
            client.sendto(datagram, (address, server.getsockname()[1]))
        engine.pump(server.fileno(), 2.0)
        engine.handshake(peer.public_key)
        assert engine.pump(server.fileno(), 2.0, 0).sent == 1
        datagram, source = client.recvfrom(2048)
        assert (datagram[0], source[0]) == (1, address)


def test_two_engines_share_a_thread(server: socket.socket, client: socket.socket) -> None:
    """Datagrams of one engine beyond its budget do not come to another, nor are they overwritten by its."""
    one, other = Engine(KEY), Engine(secrets.token_bytes(32))
    for engine, sock in ((one, server), (other, client)):
        engine.aggregate(sock.fileno())
    server.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 60)
    client.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 60)
    client.sendto(b"\4\0\0\0" + bytes(56) + bytes(60 * 19), server.getsockname())
    server.sendto(bytes(60 * 20), client.getsockname())
    assert one.pump(server.fileno(), 1.0, 1).received == 1
    assert other.pump(client.fileno(), 1.0).received == 20
    assert one.pump(server.fileno(), 1.0).received == 19
    assert (one.counters()["unknown_session"], one.counters()["malformed"]) == (1, 19)
    assert other.counters()["malformed"] == 20
