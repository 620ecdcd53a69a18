"""Handshakes of the engine: old ones, lost ones, floods of them, and the numbers and times in them."""

from __future__ import annotations

import hashlib
import itertools
import secrets

import pytest

from netbird_overlay.engine import Endpoint, EndpointChanged, Engine, Handshake
from netbird_overlay.simulation import DATE, Crossing, Node, Simulation

KEY = bytes(range(32))
FOREIGN = Endpoint("203.0.113.9", 9)


def is_initiation(crossing: Crossing) -> bool:
    return crossing.datagram[0] == 1


def index_of(datagram: bytes) -> int:
    """The sender's number of a handshake message."""
    return int.from_bytes(datagram[4:8], "little")


def restarted(simulation: Simulation, node: Node, *others: Node) -> Node:
    """The same key at the same place, in a process that knows of no session and not where anybody is."""
    simulation.nodes.remove(node)
    again = simulation.node(node.engine.addresses, endpoint=node.endpoint, private_key=KEY)
    for other in others:
        again.engine.set_peer(other.engine.public_key, other.engine.addresses)
    return again


def test_recorded_initiations_do_not_end_the_session_in_use() -> None:
    """After a restart, old initiations are answered; but data goes on in the session that both ends use."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    for _ in range(12):
        a.engine.handshake(b.engine.public_key)
        simulation.run(1)
    recorded = [c.datagram for c in simulation.crossings if is_initiation(c) and c.source == a.endpoint]
    assert len(recorded) == 12
    b = restarted(simulation, b, a)
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, endpoint=a.endpoint)
    b.engine.handshake(a.engine.public_key)
    conn, accepted = simulation.connection(a, b)
    before = b.engine.counters()["datagrams_out"]
    for number, datagram in enumerate(recorded):
        simulation.carry(datagram, FOREIGN, b.endpoint)
        a.send(conn, b"!")
        assert simulation.run(0.1, lambda: len(b.received.get(accepted, b"")) == number + 1)  # noqa: B023
        b.send(accepted, b"?")
        assert simulation.run(0.1, lambda: len(a.received.get(conn, b"")) == number + 1)  # noqa: B023
    assert b.engine.counters()["datagrams_out"] >= before + 12, "the old initiations were answered"
    state = b.engine.peer(a.engine.public_key)
    assert state is not None
    assert state.endpoint == a.endpoint


def test_unanswered_initiations_do_not_end_the_session_in_use() -> None:
    """A peer that never gets our answers, and initiates again and again, keeps the session that it has."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    simulation.filter = lambda crossing: crossing.datagram[0] != 2
    for number in range(20):
        a.engine.handshake(b.engine.public_key)
        b.send(accepted, b"!")
        assert simulation.run(1, lambda: len(a.received.get(conn, b"")) == number + 1)  # noqa: B023


def test_timestamps_do_not_run_ahead_of_the_date() -> None:
    """However many handshakes and calls there were, a handshake of the next process is newer, a moment later."""
    responder = Engine(b"r" * 32)
    engine = Engine(KEY, date=DATE)
    responder.set_peer(engine.public_key, [])
    engine.set_peer(responder.public_key, [], endpoint=FOREIGN)
    for _ in range(200):
        for _ in range(100):
            engine.advance(0.0)
        engine.handshake(responder.public_key)
    *_, (newest, _) = engine.transmits()
    responder.receive(newest, FOREIGN, 0.0)
    again = Engine(KEY, date=DATE + 0.02)
    again.set_peer(responder.public_key, [], endpoint=FOREIGN)
    again.handshake(responder.public_key)
    ((greeting, _),) = again.transmits()
    responder.receive(greeting, FOREIGN, 1.0)
    assert responder.counters()["replayed_handshake"] == 0
    assert [datagram[0] for datagram, _ in responder.transmits()] == [2, 2]


def test_two_handshakes_at_one_time_are_told_apart() -> None:
    """The second of two handshakes that begin at the same time is no replay of the first."""
    responder = Engine(b"r" * 32)
    engine = Engine(KEY, date=DATE)
    responder.set_peer(engine.public_key, [])
    engine.set_peer(responder.public_key, [], endpoint=FOREIGN)
    for now in (0.0, 1.0):
        engine.handshake(responder.public_key)
        responder.receive(engine.transmits()[0][0], FOREIGN, now)
    assert len(responder.transmits()) == 2


def test_handshakes_that_found_no_room_are_sent_later() -> None:
    """`handshake` says which handshakes did not go out, and these follow by themselves, a limited number at a time."""
    engine = Engine(KEY, date=DATE)
    engine.advance(0.0)
    keys = [hashlib.sha256(bytes([number % 256, number // 256])).digest() for number in range(1500)]
    for number, key in enumerate(keys):
        engine.set_peer(key, [], endpoint=Endpoint("192.0.2.1", number + 1))
    gone = [engine.handshake(key) for key in keys]
    assert gone == [True] * 1024 + [False] * 476
    reached = {endpoint.port for _, endpoint in engine.transmits()}
    assert reached == set(range(1, 1025))
    now, largest = 0.0, 0
    while now < 2.0:
        engine.advance(now)
        sent = engine.transmits()
        largest = max(largest, len(sent))
        reached |= {endpoint.port for _, endpoint in sent}
        now = max(now + 0.01, min(engine.deadline, 2.0))
    assert reached == set(range(1, 1501))
    assert largest <= 32


def test_retries_do_not_stay_in_step() -> None:
    """Handshakes without a response are repeated after 5 s and some tenths of a second, by chance."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    simulation.filter = lambda crossing: False
    a.engine.handshake(b.engine.public_key)
    simulation.run(80)
    times = [crossing.at for crossing in simulation.crossings]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) > 10
    assert all(5 <= gap < 5.6 for gap in gaps)
    assert len({round(gap, 2) for gap in gaps}) > 2


def test_a_handshake_is_given_up() -> None:
    """After 90 s nothing more is sent, and what waited is dropped."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    simulation.filter = lambda crossing: False
    a.engine.handshake(b.engine.public_key)
    simulation.run(100)
    simulation.crossings.clear()
    simulation.run(600)
    assert simulation.crossings == []


def test_session_numbers_tell_strangers_nothing() -> None:
    """No part of the numbers of a peer's sessions is the same in two sessions, before and after a restart."""
    indices = []
    for restart in range(3):
        engine = Engine(KEY, date=DATE + restart * 3600)
        engine.set_peer(b"p" * 32, [], endpoint=FOREIGN)
        for session in range(20):
            engine.advance(session * 120.0)
            engine.handshake(b"p" * 32)
        indices += [index_of(datagram) for datagram, _ in engine.transmits() if datagram[0] == 1]
    assert len(set(indices)) == len(indices)
    assert len({index >> 8 for index in indices}) == len(indices)
    assert len({index & 0xFFFF for index in indices}) > len(indices) // 2


def test_a_stranger_does_not_use_up_the_answer_to_a_lost_session() -> None:
    """A stranger repeats a peer's old datagram all the time; the peer itself is answered where it is known to be."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    conn, _ = simulation.connection(a, b)
    a.send(conn, b"recorded")
    recorded = next(c for c in reversed(simulation.crossings) if c.datagram[0] == 4 and c.source == a.endpoint)
    b = restarted(simulation, b, a)
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, endpoint=a.endpoint)
    simulation.carry(recorded.datagram, FOREIGN, b.endpoint)
    simulation.run(0.5)  # within the second in which the stranger's is answered
    simulation.carry(recorded.datagram, FOREIGN, b.endpoint)
    a.send(conn, b"from the peer")
    assert simulation.run(0.5, lambda: bool(b.of(Handshake)))


def test_a_session_is_not_used_after_a_sleep() -> None:
    """When the clock jumps, as after a suspend, the next packet waits for a new session."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    simulation.settle(1)
    a.engine.receive(b"", b.endpoint, simulation.now + 400)  # the first call after the sleep
    a.engine.write(conn, b"good morning")
    a.engine.advance(simulation.now + 400)
    assert [datagram[0] for datagram, _ in a.engine.transmits()] == [1]


def test_moves_in_one_turn_are_one_event() -> None:
    """A peer that speaks from another port with each datagram is reported once a turn, at the last one."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    for number in range(50):
        a.engine.write(conn, b"!")
        a.engine.advance(simulation.now)
        for datagram, _ in a.engine.transmits():
            b.engine.receive(datagram, Endpoint("198.51.100.7", 1000 + number), simulation.now)
    moves = [event for event in b.engine.events() if isinstance(event, EndpointChanged)]
    assert [event.endpoint.port for event in moves] == [1049]


def flood(server: Engine, number: int) -> list[bytes]:
    """Handshakes of a stranger at FOREIGN who has proved this address."""
    stranger = Engine(secrets.token_bytes(32))
    stranger.set_peer(server.public_key, [], endpoint=Endpoint("192.0.2.1", 1))
    stranger.handshake(server.public_key)
    ((first, _),) = stranger.transmits()
    server.receive(first, FOREIGN, 0.0)
    ((cookie, _),) = server.transmits()
    stranger.receive(cookie, Endpoint("192.0.2.1", 1), 0.0)
    datagrams: list[bytes] = []
    while len(datagrams) < number:
        stranger.handshake(server.public_key)
        datagrams += [datagram for datagram, _ in stranger.transmits()]
    return datagrams


@pytest.mark.parametrize(("seconds", "computed"), [(0, 5), (1, 5 + 19)])
def test_a_proved_address_has_a_rate(seconds: int, computed: int) -> None:
    """Under load, a sender that answers its cookie makes us compute a burst, then a few handshakes a second."""
    server = Engine(KEY, handshakes_per_second=0)
    datagrams = flood(server, 1000)
    for number, datagram in enumerate(datagrams):
        server.receive(datagram, FOREIGN, seconds * number / 1000)
    counters = server.counters()
    assert counters["unknown_key"] == computed
    assert counters["rate_limited"] == 1 + 1000 - computed
    # Another address is not limited by it.
    other = flood(Engine(KEY, handshakes_per_second=0), 1)[0]
    server.receive(other, Endpoint("203.0.113.10", 9), float(seconds))
    assert [datagram[0] for datagram, _ in server.transmits()] == [3], "it is asked to prove itself"


def test_a_cookie_proves_one_address_only() -> None:
    """A cookie for one address proves no other."""
    server = Engine(KEY, handshakes_per_second=0)
    (datagram,) = flood(server, 1)
    other = Endpoint("203.0.113.10", 9)
    server.receive(datagram, other, 0.0)
    assert [(sent[0], to) for sent, to in server.transmits()] == [(3, other)]
    assert server.counters()["unknown_key"] == 0
    server.receive(datagram, FOREIGN, 0.0)
    assert server.counters()["unknown_key"] == 1
