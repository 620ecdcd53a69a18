"""Paths of datagrams: endpoints, carriers, pinned peers, and datagrams of other protocols on the same socket."""

from __future__ import annotations

import pickle

import pytest

from netbird_overlay.engine import Endpoint, EndpointChanged, Engine, Path, PeerState
from netbird_overlay.simulation import Node, Simulation

ELSEWHERE = Endpoint("198.51.100.7", 4242)
COOKIE = b"\x21\x12\xa4\x42"
STUN = b"\0\1\0\0" + COOKIE + b"transaction!"


def state(node: Node, other: Node) -> PeerState:
    peer = node.engine.peer(other.engine.public_key)
    assert peer is not None
    return peer


def test_endpoint_is_a_value() -> None:
    """Equal endpoints are one key, in every spelling, and keep the scope of a link-local address."""
    endpoint = Endpoint("fe80::1", 7, 2)
    assert (endpoint.host, endpoint.port, endpoint.scope) == ("fe80::1", 7, 2)
    assert endpoint == Endpoint("fe80:0::1", 7, 2) != Endpoint("fe80::1", 7, 3)
    assert {Endpoint("::ffff:192.0.2.1", 1): "value"}[Endpoint("192.0.2.1", 1)] == "value"
    assert repr(endpoint) == "Endpoint('fe80::1', 7, 2)"
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    match endpoint:
        case Endpoint(host, port, scope):
            assert (host, port, scope) == ("fe80::1", 7, 2)


@pytest.mark.parametrize(
    ("host", "port", "scope"),
    [
        ("host.example", 1, 0),
        ("", 1, 0),
        ("fe80::1%2", 1, 0),
        ("192.0.2.1", -1, 0),
        ("192.0.2.1", 65536, 0),
        ("fe80::1", 1, -1),
        ("fe80::1", 1, 1 << 32),
        ("192.0.2.1", 1, 2),
    ],
)
def test_what_is_no_endpoint_is_refused(host: str, port: int, scope: int) -> None:
    """A name, a zone in the address, or a number out of range raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        Endpoint(host, port, scope)


def test_a_link_local_peer_keeps_its_interface() -> None:
    """A peer that speaks from a link-local address is answered, and reported, with the scope of its interface."""
    simulation = Simulation()
    a, b = simulation.pair()
    a.endpoint = Endpoint("fe80::1", 7, 2)
    simulation.connection(a, b)
    assert state(b, a).endpoint == Endpoint("fe80::1", 7, 2)
    assert [event.endpoint.scope for event in b.log if isinstance(event, EndpointChanged)] == [2]


@pytest.mark.parametrize("path", [0, -1, 1 << 64, True, "192.0.2.1", ("192.0.2.1", 1), None])
def test_what_is_no_path_is_refused(path: Path) -> None:
    """A path is an Endpoint or a number above 0; anything else raises and changes nothing."""
    engine = Engine(bytes(31) + b"\1")
    engine.set_peer(b"k" * 32, ["100.64.0.2"])
    with pytest.raises((TypeError, ValueError)):
        engine.pin(b"k" * 32, path)
    with pytest.raises((TypeError, ValueError)):
        engine.receive(b"datagram", path, 1.0)
    assert engine.peers()[0].endpoint is None


def test_a_connection_runs_over_a_carrier() -> None:
    """Peers without endpoints reach one another by a carrier, each with a number of its own."""
    simulation = Simulation()
    a, b = simulation.node(["100.64.0.1"]), simulation.node(["100.64.0.2"])
    for node, other in ((a, b), (b, a)):
        node.engine.set_peer(other.engine.public_key, other.engine.addresses)
    simulation.carrier(a, 7, b, 9)
    assert a.engine.pin(b.engine.public_key, 7)
    conn, accepted = simulation.connection(a, b)
    data = bytes(range(256)) * 1000
    a.send(conn, data)
    b.send(accepted, data)
    assert simulation.run(
        30, lambda: len(a.received.get(conn, b"")) + len(b.received.get(accepted, b"")) == 2 * len(data)
    )
    # The end that nobody pinned follows the peer's datagrams onto the carrier; this is no event.
    assert (state(a, b).endpoint, state(b, a).endpoint) == (7, 9)
    assert (state(a, b).pinned, state(b, a).pinned) == (True, False)
    assert not [event for node in (a, b) for event in node.log if isinstance(event, EndpointChanged)]


def test_a_pinned_peer_stays_where_it_is_pinned() -> None:
    """Datagrams of a pinned peer from elsewhere are accepted, and do not move it; after `unpin` they do."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    simulation.carrier(a, 1, b, 1)
    assert b.engine.pin(a.engine.public_key, 1)
    b.log.clear()
    a.endpoint = ELSEWHERE
    a.send(conn, b"from elsewhere")
    b.send(accepted, b"an answer")
    assert simulation.run(5, lambda: a.received.get(conn) == b"an answer" and accepted in b.received)
    assert state(b, a).endpoint == 1
    assert b.log == []
    # A new endpoint in the settings does not move it either.
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, endpoint=ELSEWHERE)
    assert state(b, a).endpoint == 1
    assert b.engine.unpin(a.engine.public_key)
    assert state(b, a).endpoint is None
    assert not state(b, a).pinned
    # The peer is pinned to the carrier in its own view no more, and speaks from its socket.
    a.engine.pin(b.engine.public_key, b.endpoint)
    a.send(conn, b"!")
    simulation.run(5)
    assert state(b, a).endpoint == ELSEWHERE


def test_pins_keep_sessions_and_resets_drop_them() -> None:
    """A path can change within a session. `reset_session` drops it, and keeps path and connections."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    simulation.carrier(a, 1, b, 2)
    a.engine.pin(b.engine.public_key, 1)
    b.engine.pin(a.engine.public_key, 2)
    simulation.crossings.clear()
    a.send(conn, b"by the carrier")
    assert simulation.run(5, lambda: b.received.get(accepted) == b"by the carrier")
    assert {crossing.datagram[0] for crossing in simulation.crossings} == {4}
    assert a.engine.reset_session(b.engine.public_key)
    assert state(a, b).last_handshake is None
    assert state(a, b).endpoint == 1
    a.send(conn, b", in a new session")
    assert simulation.run(5, lambda: b.received.get(accepted) == b"by the carrier, in a new session")
    assert {crossing.datagram[0] for crossing in simulation.crossings} == {1, 2, 4}


def test_unknown_peers_have_no_path() -> None:
    engine = Engine(bytes(31) + b"\1")
    assert not engine.pin(b"k" * 32, 1)
    assert not engine.unpin(b"k" * 32)
    assert not engine.reset_session(b"k" * 32)


def test_carriers_are_bounded() -> None:
    """Datagrams for a carrier that nobody takes are dropped at a bound, and counted."""
    engine = Engine(bytes(31) + b"\1")
    engine.advance(0.0)
    for number in range(1200):
        key = (number + 2).to_bytes(32, "little")
        engine.set_peer(key, [])
        engine.pin(key, number + 1)
        engine.handshake(key)
    assert engine.counters()["queue_full"] == 1200 - 1024
    assert len(engine.carried()) == 1024
    assert engine.carried() == []


def test_stun_on_the_socket_is_handed_over() -> None:
    """A datagram that is STUN's comes out with its source; it is no WireGuard datagram and no malformed one."""
    engine = Engine(bytes(31) + b"\1")
    engine.receive(STUN, ELSEWHERE, 1.0)
    engine.receive(STUN + bytes(100), ELSEWHERE, 1.0)
    assert engine.strays() == [(STUN, ELSEWHERE), (STUN + bytes(100), ELSEWHERE)]
    assert engine.strays() == []
    assert engine.counters()["malformed"] == 0
    # Neither without the cookie nor by a carrier, and never what WireGuard may have sent.
    for datagram, source in (
        (STUN.replace(COOKIE, b"cook"), ELSEWHERE),
        (STUN[:19], ELSEWHERE),
        (STUN, 5),
        (b"\4\0\0\0" + COOKIE + bytes(40), ELSEWHERE),
    ):
        engine.receive(datagram, source, 1.0)
    assert engine.strays() == []


def test_a_flood_of_stun_is_bounded_and_leaves_room_for_others() -> None:
    """One address takes a share of the place for STUN datagrams, and all together not more than the place."""
    engine = Engine(bytes(31) + b"\1")
    for number in range(1000):
        engine.receive(STUN + bytes([number % 256]), ELSEWHERE, 1.0)
    engine.receive(STUN, Endpoint("192.0.2.1", 3478), 1.0)
    for number in range(100):
        engine.receive(STUN, Endpoint(f"203.0.113.{number}", 3478), 1.0)
    strays = engine.strays()
    assert len(strays) == 64
    assert (STUN, Endpoint("192.0.2.1", 3478)) in strays
    assert engine.counters()["strays_dropped"] == 1101 - 64


def test_a_handshake_by_a_carrier_can_be_made_to_prove_itself() -> None:
    """Under a flood, the sender on a carrier gets cookies, as one at an address does, and another carrier works."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], handshakes_per_second=1)
    for node, other in ((a, b), (b, a)):
        node.engine.set_peer(other.engine.public_key, other.engine.addresses)
    simulation.carrier(a, 7, b, 9)
    a.engine.pin(b.engine.public_key, 7)
    stranger = Engine(bytes(31) + b"\5")
    stranger.set_peer(b.engine.public_key, [], endpoint=b.endpoint)
    for number in range(20):
        stranger.advance(simulation.now + number)
        stranger.handshake(b.engine.public_key)
        for datagram, _ in stranger.transmits():
            b.engine.receive(datagram, 8, simulation.now)
    assert {datagram[0] for _, datagram in b.engine.carried()} == {3}
    simulation.connection(a, b)
