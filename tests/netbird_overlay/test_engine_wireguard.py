"""WireGuard as the engine speaks it: who is heard, when keys change, and what is dropped and counted."""

import itertools
from typing import Any

import pytest

from netbird_overlay.engine import Endpoint, EndpointChanged, Engine, Handshake, NoEndpoint, NoRoute
from netbird_overlay.simulation import Crossing, Node, Simulation, Weather


def is_initiation(crossing: Crossing) -> bool:
    return crossing.datagram[0] == 1


def is_data(crossing: Crossing) -> bool:
    return crossing.datagram[0] == 4


def counted(node: Node, *names: str) -> dict[str, int]:
    """The counters of things gone wrong that are not zero."""
    usual = {"handshakes", "datagrams_in", "datagrams_out", "bytes_in", "bytes_out", "accepted", "connected"}
    usual |= {"connections", "buffer_bytes", "half_open"}
    return {name: value for name, value in node.engine.counters().items() if value and name not in usual}


def test_two_engines_shake_hands_on_demand() -> None:
    """A handshake starts on request, and both ends tell of it."""
    simulation = Simulation()
    a, b = simulation.pair()
    assert a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    assert a.log == [] or isinstance(a.log[0], Handshake)
    assert [event.peer for event in a.log if isinstance(event, Handshake)] == [b.engine.public_key]
    assert [event.peer for event in b.log if isinstance(event, Handshake)] == [a.engine.public_key]
    state = a.engine.peer(b.engine.public_key)
    assert state is not None
    assert state.last_handshake is not None
    assert state.last_handshake < 1.1


def test_handshake_is_tried_again_when_lost() -> None:
    """The first initiation is lost; another follows within seconds, without anybody asking."""
    simulation = Simulation()
    a, b = simulation.pair()
    lost: list[Crossing] = []

    def lose_first(crossing: Crossing) -> bool:
        if is_initiation(crossing) and not lost:
            lost.append(crossing)
            return False
        return True

    simulation.filter = lose_first
    a.engine.handshake(b.engine.public_key)
    assert simulation.run(8, lambda: bool(b.of(Handshake)))
    assert lost


def test_keys_are_renewed_and_nothing_is_lost() -> None:
    """A transfer of ten minutes goes through several sessions without a byte missing."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    sent = bytearray()
    for second in range(600):
        chunk = second.to_bytes(4, "big") * 25
        sent += chunk
        a.send(conn, chunk)
        simulation.run(1)
    assert bytes(b.received[accepted]) == bytes(sent)
    handshakes = len(a.of(Handshake))
    assert 4 <= handshakes <= 8
    assert counted(b) == {}


def test_keepalive_keeps_the_path_open() -> None:
    """With a keepalive of 25 s an idle peer sends something at least that often, for an hour."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    a.engine.set_peer(b.engine.public_key, b.engine.addresses, endpoint=b.endpoint, keepalive=25)
    simulation.run(3600)
    times = [crossing.at for crossing in simulation.crossings if crossing.source == a.endpoint]
    assert times[-1] - times[0] > 3500
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 26.5


def test_no_keepalive_means_silence() -> None:
    """Idle peers without a keepalive send nothing once their session is over."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    simulation.connection(a, b)
    a.engine.abort(1)
    simulation.run(700)
    before = len(simulation.crossings)
    simulation.run(3600)
    assert len(simulation.crossings) == before


def test_keepalive_finds_a_peer_that_was_away_for_long() -> None:
    """A peer that is unreachable for ten minutes is found again without anybody asking."""
    simulation = Simulation()
    a, b = simulation.pair()
    a.engine.set_peer(b.engine.public_key, b.engine.addresses, endpoint=b.endpoint, keepalive=25)
    simulation.run(30)
    simulation.filter = lambda crossing: False
    simulation.run(700)
    before = len(a.of(Handshake))
    simulation.filter = None
    assert simulation.run(60, lambda: len(a.of(Handshake)) > before)


def test_update_of_a_peer_keeps_its_session() -> None:
    """New allowed IPs and a new keepalive do not cost a handshake or a connection."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    a.engine.set_peer(b.engine.public_key, [*b.engine.addresses, "10.0.0.0/8"], keepalive=10)
    a.send(conn, b"still here")
    simulation.run(2)
    assert bytes(b.received[accepted]) == b"still here"
    assert len(a.of(Handshake)) == 1
    state = a.engine.peer(b.engine.public_key)
    assert state is not None
    assert state.allowed_ips == ["10.0.0.0/8", "100.64.0.2/32", "fd00::2/128"]
    assert (state.endpoint, state.keepalive) == (b.endpoint, 10)


def test_preshared_key_must_agree() -> None:
    """Peers with different preshared keys have no session; with the same one they do."""
    simulation = Simulation()
    a, b = simulation.pair()
    a.engine.set_peer(b.engine.public_key, b.engine.addresses, preshared_key=b"p" * 32)
    a.engine.handshake(b.engine.public_key)
    simulation.run(10)
    assert not a.of(Handshake)
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, preshared_key=b"p" * 32)
    a.engine.handshake(b.engine.public_key)
    assert simulation.run(10, lambda: bool(a.of(Handshake)))


def test_endpoint_follows_authenticated_packets_only() -> None:
    """A peer that moves is followed; a stranger's packets and replays from elsewhere move nothing."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, b"one")
    simulation.run(1)

    def known() -> Any:
        state = b.engine.peer(a.engine.public_key)
        assert state is not None
        return state.endpoint

    first = known()
    for crossing in [*simulation.crossings]:
        if crossing.source == a.endpoint:
            b.engine.receive(crossing.datagram, Endpoint("203.0.113.9", 9), simulation.now)
            b.engine.receive(crossing.datagram[:-1] + b"\0", Endpoint("203.0.113.9", 9), simulation.now)
    b.flush()
    assert known() == first
    a.endpoint = Endpoint("198.51.100.7", 4242)
    a.send(conn, b"two")
    simulation.run(1)
    assert known() == Endpoint("198.51.100.7", 4242)
    assert [event.endpoint for event in b.log if isinstance(event, EndpointChanged)] == [a.endpoint]
    b.send(accepted, b"back")
    simulation.run(1)
    assert bytes(a.received[conn]) == b"back"


def test_old_initiation_does_not_move_an_endpoint_after_restart() -> None:
    """An initiation recorded before our restart is answered to its sender, but teaches no endpoint."""
    secret = bytes(range(32))
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.node(["100.64.0.1"]), simulation.node(["100.64.0.2"], private_key=secret)
    simulation.introduce(a, b)
    a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    recorded = next(crossing for crossing in simulation.crossings if is_initiation(crossing))
    restarted = simulation.node(["100.64.0.2"], private_key=secret).engine
    restarted.set_peer(a.engine.public_key, ["100.64.0.1"])
    restarted.receive(recorded.datagram, Endpoint("203.0.113.9", 9), simulation.now)
    assert [destination for _, destination in restarted.transmits()] == [Endpoint("203.0.113.9", 9)]
    state = restarted.peer(a.engine.public_key)
    assert state is not None
    assert state.endpoint is None


def test_replays_and_junk_are_dropped_and_counted() -> None:
    """Malformed datagrams, wrong keys, replayed handshakes and replayed data change nothing."""
    simulation = Simulation(keep_crossings=True)
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, b"once")
    simulation.run(1)
    to_b = [crossing for crossing in simulation.crossings if crossing.destination == b.endpoint]
    initiation = next(crossing.datagram for crossing in to_b if is_initiation(crossing))
    data = [crossing.datagram for crossing in to_b if is_data(crossing)]
    now = simulation.now
    b.engine.receive(initiation, a.endpoint, now)
    for datagram in data:
        b.engine.receive(datagram, a.endpoint, now)
    forged = data[-1][:8] + (1000).to_bytes(8, "little") + data[-1][16:]
    for junk in (
        b"",
        b"\1",
        b"\4\0\0\0",
        b"\4" + bytes(31),
        bytes(148),
        initiation[:-1],
        initiation[:40] + b"!" + initiation[41:],
        forged,
    ):
        b.engine.receive(junk, a.endpoint, now)
    stranger = Engine(b"s" * 32)
    stranger.set_peer(b.engine.public_key, ["0.0.0.0/0"], endpoint=b.endpoint)
    stranger.handshake(b.engine.public_key)
    ((greeting, _),) = stranger.transmits()
    b.engine.receive(greeting, Endpoint("203.0.113.9", 9), now)
    b.flush()
    simulation.run(1)
    assert bytes(b.received[accepted]) == b"once"
    assert counted(b) == {
        "bad_mac": 1,
        "decrypt_failed": 1,
        "malformed": 5,
        "replayed": len(data),
        "replayed_handshake": 1,
        "unknown_key": 1,
        "unknown_session": 1,
    }


def test_inner_source_must_be_the_senders() -> None:
    """A peer that sends from an address that is another's, ours or nobody's is not heard, and it is counted."""
    simulation = Simulation()
    victim = simulation.node(["100.64.0.1"])
    liar = simulation.node(["100.64.0.66"])
    liar.engine.set_peer(victim.engine.public_key, ["100.64.0.0/10"], endpoint=victim.endpoint)
    victim.engine.set_peer(liar.engine.public_key, ["100.64.0.9"], endpoint=liar.endpoint)
    victim.engine.listen(80)
    for claimed in ("100.64.0.66", "100.64.0.2", "100.64.0.1"):
        liar.engine.set_addresses([claimed])
        if claimed != "100.64.0.1":
            liar.connect("100.64.0.1", 80)
        simulation.run(3)
    assert victim.engine.counters()["bad_source"] >= 2
    assert victim.engine.counters()["connections"] == 0
    assert not [event for event in victim.log if not isinstance(event, Handshake)]
    liar.engine.set_addresses(["100.64.0.9"])
    simulation.connection(liar, victim)


def test_longest_prefix_decides_whose_address_it_is() -> None:
    """A peer with a wide route cannot speak for the address of a peer inside it."""
    simulation = Simulation()
    victim, router, member = (simulation.node([f"100.64.0.{n}"]) for n in (1, 2, 3))
    victim.engine.set_peer(router.engine.public_key, ["100.64.0.2", "100.64.0.0/16"], endpoint=router.endpoint)
    victim.engine.set_peer(member.engine.public_key, ["100.64.0.3"], endpoint=member.endpoint)
    router.engine.set_peer(victim.engine.public_key, ["100.64.0.1"], endpoint=victim.endpoint)
    victim.engine.listen(80)
    router.engine.set_addresses(["100.64.0.3"])
    router.connect("100.64.0.1", 80)
    simulation.run(3)
    assert victim.engine.counters()["bad_source"] >= 1
    router.engine.set_addresses(["100.64.0.77"])
    simulation.connection(router, victim)


def test_whois_answers_for_whole_addresses_only() -> None:
    """The roster is the /32s and /128s; a route around an address is no answer."""
    engine = Engine(bytes(31) + b"\1")
    alice, bob = b"a" * 32, b"b" * 32
    engine.set_peer(alice, ["100.64.0.5/32", "fd00::5", "10.0.0.0/8"])
    engine.set_peer(bob, ["100.64.0.6"])
    assert engine.whois("100.64.0.5") == alice
    assert engine.whois("::ffff:100.64.0.5") == alice
    assert engine.whois("fd00:0::5") == alice
    assert engine.whois("100.64.0.6") == bob
    assert engine.whois("10.0.0.1") is None
    assert engine.whois("100.64.0.7") is None
    engine.set_peer(bob, ["100.64.0.5"])
    assert engine.whois("100.64.0.5") == bob
    assert engine.whois("100.64.0.6") is None
    engine.remove_peer(bob)
    assert engine.whois("100.64.0.5") is None


def test_handshake_floods_have_to_prove_their_address() -> None:
    """Over the limit handshakes are answered with a cookie; who sends it back is let in."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], handshakes_per_second=0)
    simulation.introduce(a, b)
    a.engine.handshake(b.engine.public_key)
    assert simulation.run(15, lambda: bool(a.of(Handshake)))
    kinds = [crossing.datagram[0] for crossing in simulation.crossings if crossing.source == b.endpoint]
    assert kinds[0] == 3
    assert b.engine.counters()["rate_limited"] == 1


def test_removed_peer_is_deaf_and_mute() -> None:
    """After removal neither its session nor a new handshake is answered."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    assert b.engine.remove_peer(a.engine.public_key)
    assert not b.engine.remove_peer(a.engine.public_key)
    b.flush()
    assert b.end(accepted) == "peer_removed"
    a.send(conn, b"hello?")
    simulation.run(30)
    counters = b.engine.counters()
    assert counters["unknown_session"] > 0
    assert counters["unknown_key"] > 0
    assert b.engine.peers() == []


def test_dial_waits_for_a_peer_that_comes_later() -> None:
    """A dial to a peer that is off the network succeeds when the peer appears in time."""
    simulation = Simulation()
    a, b = simulation.pair()
    b.engine.listen(80)
    simulation.filter = lambda crossing: False
    conn = a.connect(b.address, 80)
    simulation.run(12)
    simulation.filter = None
    assert simulation.run(20, lambda: bool(a.of(Handshake)) and a.end(conn) is None and bool(b.received or b.log))
    simulation.run(10)
    assert a.end(conn) is None
    assert a.engine.counters()["connected"] == 1


def test_dial_without_a_way_there_says_why() -> None:
    """No allowed IP: NoRoute. A peer nobody has heard of yet: NoEndpoint. Neither sends anything."""
    simulation = Simulation()
    a, b = simulation.node(["100.64.0.1"]), simulation.node(["100.64.0.2"])
    with pytest.raises(NoRoute):
        a.connect("100.64.0.2", 80)
    a.engine.set_peer(b.engine.public_key, ["100.64.0.2", "fd00::2"])
    with pytest.raises(NoEndpoint):
        a.connect("100.64.0.2", 80)
    with pytest.raises(NoRoute):
        a.connect("fd00::2", 80)
    with pytest.raises(NoRoute):
        a.connect("100.64.0.1", 80)
    assert a.engine.transmits() == []


@pytest.mark.parametrize("seed", range(3))
def test_sessions_survive_bad_weather(seed: int) -> None:
    """With loss, duplicates and reordering, ten minutes of requests all get their answers."""
    simulation = Simulation(seed, Weather(delay=0.03, jitter=0.03, loss=0.03, duplicate=0.02))
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    for turn in range(60):
        a.send(conn, b"%04d" % turn)
        wanted = 4 * (turn + 1)
        assert simulation.run(120, lambda: len(b.received.get(accepted, b"")) == wanted)  # noqa: B023
        simulation.run(10)
    assert bytes(b.received[accepted]) == b"".join(b"%04d" % turn for turn in range(60))


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        (b"short", ["100.64.0.2"]),
        (b"", []),
        (bytes(32), []),
        (b"k" * 32, ["100.64.0.2/33"]),
        (b"k" * 32, ["::ffff:100.64.0.2/128"]),
        (b"k" * 32, ["host.example"]),
        (b"k" * 32, ["100.64.0.2/"]),
        (b"k" * 32, ["100.64.0.2/+1"]),
    ],
)
def test_peer_that_cannot_be_is_refused_whole(key: bytes, allowed: list[str]) -> None:
    """A wrong key or prefix raises ValueError and adds no peer."""
    engine = Engine(bytes(31) + b"\1")
    with pytest.raises(ValueError, match=r"."):
        engine.set_peer(key, allowed)
    assert engine.peers() == []


def test_own_key_is_no_peer() -> None:
    """An engine does not take itself for a peer."""
    engine = Engine(bytes(31) + b"\1")
    with pytest.raises(ValueError, match="public key"):
        engine.set_peer(engine.public_key, [])


def restarted(simulation: Simulation, node: Node, *others: Node) -> Node:
    """The same key at the same place, in a process that knows of no session and not where anybody is."""
    simulation.nodes.remove(node)
    again = simulation.node(node.engine.addresses, endpoint=node.endpoint, private_key=KEY)
    for other in others:
        again.engine.set_peer(other.engine.public_key, other.engine.addresses)
    return again


KEY = bytes(range(32))


def test_a_session_from_before_a_restart_is_answered_by_a_new_one() -> None:
    """Whoever goes on with it is sent a handshake to where it speaks from, and need not wait until it gives up."""
    simulation = Simulation()
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    simulation.connection(a, b)
    b = restarted(simulation, b, a)
    start = simulation.now
    simulation.connection(a, b)
    assert simulation.now - start < 2
    state = b.engine.peer(a.engine.public_key)
    assert state is not None
    assert state.endpoint == a.endpoint


def test_a_peer_that_moved_while_we_were_away_is_found_where_it_is() -> None:
    """The place that we remember is no longer its own; the handshake that counts goes to the one it speaks from."""
    simulation = Simulation()
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    simulation.connection(a, b)
    b = restarted(simulation, b, a)
    b.engine.set_peer(a.engine.public_key, a.engine.addresses, endpoint=a.endpoint)
    a.endpoint = Endpoint("198.51.100.9", 4711)
    b.engine.handshake(a.engine.public_key)
    start = simulation.now
    simulation.connection(a, b)
    assert simulation.now - start < 2


def test_an_old_session_of_nobody_we_know_is_not_answered() -> None:
    """A peer that was removed meanwhile hears nothing, as if nobody were there."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    simulation.connection(a, b)
    b = restarted(simulation, b)
    simulation.crossings.clear()
    a.connect(b.address, 80)
    simulation.run(10)
    assert [crossing for crossing in simulation.crossings if crossing.source == b.endpoint] == []
    assert counted(b)["unknown_session"] > 0


def test_old_sessions_cannot_make_us_send_much() -> None:
    """A recorded datagram that is sent again and again, from a made-up address, is answered once a second there, and
    moves nobody."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    conn, _ = simulation.connection(a, b)
    a.send(conn, b"recorded")
    recorded = next(c for c in reversed(simulation.crossings) if is_data(c) and c.source == a.endpoint)
    victim = Endpoint("198.51.100.9", 4711)
    b = restarted(simulation, b, a)
    simulation.nodes.remove(a)
    simulation.crossings.clear()
    for _ in range(1000):
        simulation.carry(recorded.datagram, victim, b.endpoint)
        simulation.run(0.01)
    sent = [crossing for crossing in simulation.crossings if crossing.destination == victim]
    assert all(is_initiation(crossing) for crossing in sent)
    assert 1 <= len(sent) <= 11
    state = b.engine.peer(a.engine.public_key)
    assert state is not None
    assert state.endpoint is None


def test_a_session_that_works_is_not_renewed_by_an_old_one() -> None:
    """Where both ends have a session, a datagram of another one is dropped and counted, and that is all."""
    simulation = Simulation(keep_crossings=True)
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], private_key=KEY)
    simulation.introduce(a, b)
    conn, _ = simulation.connection(a, b)
    a.send(conn, b"recorded")
    recorded = next(c for c in reversed(simulation.crossings) if is_data(c) and c.source == a.endpoint)
    b = restarted(simulation, b, a)
    for _ in range(2):  # so that the old session's place is another one
        a.engine.handshake(b.engine.public_key)
        simulation.run(1)
    simulation.crossings.clear()
    simulation.carry(recorded.datagram, Endpoint("198.51.100.9", 4711), b.endpoint)
    simulation.run(2)
    assert not [crossing for crossing in simulation.crossings if crossing.source == b.endpoint]
    assert counted(b)["unknown_session"] + counted(b).get("decrypt_failed", 0) >= 1
