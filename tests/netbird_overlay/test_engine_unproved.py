"""Messages that prove nothing yet, because anybody may have recorded or made them, change nothing that holds."""

from __future__ import annotations

import hashlib
import secrets

import pytest
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from netbird_overlay.engine import Endpoint, Handshake
from netbird_overlay.simulation import Crossing, Node, Simulation

KEY = bytes(range(32))
FOREIGN = Endpoint("203.0.113.9", 9)


def initiations(simulation: Simulation, source: Node) -> list[Crossing]:
    return [c for c in simulation.crossings if c.datagram[0] == 1 and c.source == source.endpoint]


def recorded(simulation: Simulation, number: int = 12) -> tuple[Node, Node, list[bytes], bytes]:
    """Two nodes, of which the second has restarted; initiations and a datagram of the first from before that."""
    simulation.keep_crossings = True
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    for _ in range(number):
        a.engine.handshake(b.engine.public_key)
        simulation.run(1)
    conn, _ = simulation.connection(a, b)
    a.send(conn, b"recorded")
    old = [crossing.datagram for crossing in initiations(simulation, a)]
    datagram = next(c.datagram for c in reversed(simulation.crossings) if c.datagram[0] == 4 and c.source == a.endpoint)
    simulation.run(1)
    a.engine.abort(conn)
    simulation.nodes.remove(b)
    b = simulation.node(b.engine.addresses, endpoint=b.endpoint, private_key=KEY)
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, endpoint=a.endpoint)
    simulation.crossings.clear()
    return a, b, old[:number], datagram


def test_old_initiations_do_not_postpone_the_renewal_of_keys() -> None:
    """The initiator of the session in use renews it after 120 s, whatever recorded initiations it answered since."""
    simulation = Simulation()
    a, b, old, _ = recorded(simulation)
    b.engine.handshake(a.engine.public_key)
    conn, _ = simulation.connection(b, a)
    start = simulation.now
    simulation.run(60)
    answered = b.engine.counters()["datagrams_out"]
    for datagram in old:
        simulation.carry(datagram, FOREIGN, b.endpoint)
        simulation.run(0.1)
    assert b.engine.counters()["datagrams_out"] == answered + len(old), "they were answered"
    simulation.crossings.clear()
    while not initiations(simulation, b):
        b.send(conn, b"traffic")
        simulation.run(1)
        assert simulation.now - start < 125
    assert simulation.now - start > 119


@pytest.mark.parametrize("number", [1, 2, 12])
def test_old_initiations_do_not_stop_a_handshake_from_being_tried_again(number: int) -> None:
    """A greeting that was lost is repeated after 5 s, although recorded initiations were answered meanwhile."""
    simulation = Simulation()
    a, b, old, _ = recorded(simulation)
    lost = simulation.now + 3
    simulation.filter = lambda crossing: simulation.now > lost
    b.engine.handshake(a.engine.public_key)
    simulation.run(3.1)
    for datagram in old[:number]:
        simulation.carry(datagram, FOREIGN, b.endpoint)
        simulation.run(0.1)
    assert simulation.run(4, lambda: bool(b.of(Handshake)))


def test_old_initiations_do_not_displace_a_handshake_whose_answer_is_on_its_way() -> None:
    """The response to our initiation counts, although recorded initiations came before it."""
    simulation = Simulation()
    a, b, old, _ = recorded(simulation)
    simulation.weather.delay = 0.5
    b.engine.handshake(a.engine.public_key)
    for datagram in old:
        b.engine.receive(datagram, FOREIGN, simulation.now)
        simulation.run(0.03)
    assert simulation.run(1.1, lambda: bool(b.of(Handshake)))


def test_old_initiations_leave_the_cookie_of_our_own_handshake_its_place() -> None:
    """A peer under load asks us to prove our address, and its cookie counts although we answered old initiations."""
    simulation = Simulation()
    a, b, old, _ = recorded(simulation)
    simulation.nodes.remove(a)
    b.engine.handshake(a.engine.public_key)
    ((greeting, _),) = b.engine.transmits()
    b.engine.receive(old[0], FOREIGN, simulation.now)
    assert [datagram[0] for datagram, _ in b.engine.transmits()] == [2]
    b.engine.receive(cookie_reply(greeting, a.engine.public_key), a.endpoint, simulation.now)
    b.engine.advance(simulation.now)
    b.engine.handshake(a.engine.public_key)
    ((second, _),) = b.engine.transmits()
    assert second[-16:] != bytes(16), "it has the code of the cookie"


def test_datagrams_of_old_sessions_do_not_stop_a_handshake_from_being_tried_again() -> None:
    """A stranger repeats a datagram of before our restart each second; the peer's own place gets its initiations."""
    simulation = Simulation()
    a, b, _, datagram = recorded(simulation)
    simulation.filter = lambda crossing: crossing.destination != a.endpoint
    b.engine.handshake(a.engine.public_key)
    for _ in range(20):
        simulation.carry(datagram, FOREIGN, b.endpoint)
        simulation.run(1)
    answered = [crossing for crossing in initiations(simulation, b) if crossing.destination == FOREIGN]
    greetings = [crossing for crossing in initiations(simulation, b) if crossing.destination == a.endpoint]
    assert len(answered) > 10, "the stranger's datagrams were answered"
    assert len(greetings) >= 4


def cookie_reply(handshake: bytes, public_key: bytes) -> bytes:
    """A reply to a handshake message, as anybody makes it who saw the message and knows its receiver's public key."""
    key = hashlib.blake2s(b"cookie--" + public_key).digest()
    nonce = secrets.token_bytes(24)
    mac1 = handshake[-32:-16]
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(secrets.token_bytes(16), mac1, nonce, key)
    return bytes([3, 0, 0, 0]) + handshake[4:8] + nonce + sealed


def test_cookies_are_no_sign_of_life() -> None:
    """A peer that is gone is noticed after 15 s, although somebody sends cookies for our last handshake."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    (greeting,) = initiations(simulation, a)
    simulation.run(5)
    simulation.nodes.remove(b)
    simulation.crossings.clear()
    start = simulation.now
    while not initiations(simulation, a):
        a.send(conn, b"hello?")
        a.engine.receive(cookie_reply(greeting.datagram, b.engine.public_key), b.endpoint, simulation.now)
        simulation.run(1)
        assert simulation.now - start < 20


def test_bytes_of_strangers_are_not_counted_as_a_peers() -> None:
    """Junk with the number of a session, which anybody on the path can read, does not count as received."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    a.send(conn, b"proved")
    simulation.run(1)
    genuine = next(c.datagram for c in reversed(simulation.crossings) if c.datagram[0] == 4 and c.source == a.endpoint)
    before = b.engine.peer(a.engine.public_key)
    assert before is not None
    for _ in range(10):
        b.engine.receive(genuine[:16] + secrets.token_bytes(1000), FOREIGN, simulation.now)
        b.engine.receive(genuine, FOREIGN, simulation.now)
    after = b.engine.peer(a.engine.public_key)
    assert after is not None
    assert (after.rx, after.endpoint) == (before.rx, before.endpoint)


@pytest.mark.parametrize("idle", [1, 200, 539.9, 541, 700, 5000])
def test_a_session_begins_with_its_first_data_after_any_silence(idle: float) -> None:
    """A peer that initiates after a long silence is heard, and its data gets the answer of a keepalive."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    b.engine.set_inbound([])
    simulation.connection(b, a)
    simulation.run(idle)
    a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    simulation.crossings.clear()
    a.connect(b.address, 80)  # which no rule of b admits, so that it says nothing
    assert simulation.run(
        13,
        lambda: any(
            c.datagram[0] == 4 and c.source == b.endpoint and len(c.datagram) == 32 for c in simulation.crossings
        ),
    )
