"""Connections through two engines: what arrives, how they end, and what a slow or silent end costs the other."""
# Over 500 lines: one engine's TCP, tried with one pair of nodes.

import hashlib
import random

import pytest

from netbird_overlay.engine import (
    Accepted,
    Closed,
    Connected,
    ConnectFailed,
    Data,
    Endpoint,
    Engine,
    Eof,
    Event,
    LimitReached,
)
from netbird_overlay.simulation import Simulation, Weather

FIRST_BYTES = (16 + 16 + 2) << 10
"""What a new connection takes: two buffers and itself."""


def payload(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("address", ["100.64.0.2", "fd00::2"])
def test_bytes_arrive_whole_both_ways(address: str) -> None:
    """A megabyte each way at once, over IPv4 and IPv6, from the end that dialed and the end that accepted."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b, address=address)
    there, back = payload(1, 1_000_000), payload(2, 1_000_000)
    a.send(conn, there)
    b.send(accepted, back)
    assert simulation.run(
        60, lambda: len(b.received.get(accepted, b"")) + len(a.received.get(conn, b"")) == len(there) + len(back)
    )
    assert hashlib.sha256(b.received[accepted]).digest() == hashlib.sha256(there).digest()
    assert hashlib.sha256(a.received[conn]).digest() == hashlib.sha256(back).digest()


@pytest.mark.parametrize("seed", range(4))
def test_bytes_arrive_whole_in_bad_weather(seed: int) -> None:
    """Loss, reordering and duplicates change how long it takes, and nothing else."""
    simulation = Simulation(seed, Weather(delay=0.02, jitter=0.01, loss=0.02, duplicate=0.01))
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    data = payload(seed, 300_000)
    a.send(conn, data)
    assert simulation.run(600, lambda: len(b.received.get(accepted, b"")) == len(data))
    assert bytes(b.received[accepted]) == data


def test_both_ends_tell_who_the_other_is() -> None:
    """The accepted connection names addresses, port and the key of the peer that opened it."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b, 8080)
    (event,) = [event for event in b.log if isinstance(event, Accepted)]
    (connected,) = [event for event in a.log if isinstance(event, Connected)]
    assert (event.conn, event.local, event.port) == (accepted, ("100.64.0.2", 8080), 8080)
    assert event.remote == connected.local
    assert event.remote[0] == "100.64.0.1"
    assert event.peer == a.engine.public_key
    assert connected.conn == conn


def test_half_close_lets_the_answer_through() -> None:
    """A client that has finished sending still gets everything that comes back, then both ends end well."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, b"question")
    a.engine.write_eof(conn)
    a.flush()
    assert simulation.run(5, lambda: bool(b.of(Eof, accepted)))
    assert bytes(b.received[accepted]) == b"question"
    simulation.run(300)
    answer = payload(3, 200_000)
    b.send(accepted, answer)
    simulation.run(20)
    b.engine.write_eof(accepted)
    b.flush()
    simulation.run(20)
    assert bytes(a.received[conn]) == answer
    assert a.of(Eof, conn)
    assert (a.end(conn), b.end(accepted)) == ("finished", "finished")
    assert a.engine.counters()["connections"] == b.engine.counters()["connections"] == 0


def test_close_delivers_what_was_written() -> None:
    """`close` right after `write` loses nothing that was taken, and is reported at once."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    taken = a.engine.write(conn, payload(4, 50_000))
    a.engine.close(conn)
    a.flush()
    assert a.end(conn) == "local"
    simulation.run(5)
    assert len(b.received[accepted]) == taken > 0
    assert b.of(Eof, accepted)


def test_abort_resets_the_other_end() -> None:
    """`abort` is a reset there and `local` here."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    b.engine.abort(accepted)
    b.flush()
    assert simulation.run(2, lambda: a.end(conn) is not None)
    assert (a.end(conn), b.end(accepted)) == ("reset", "local")


def test_every_connection_ends_once_and_nothing_follows() -> None:
    """However two ends pull at it, each connection that was reported has one end, which is its last event."""
    for seed in range(30):
        chance = random.Random(seed)
        simulation = Simulation(seed, Weather(delay=0.01, jitter=0.02, loss=0.05))
        a, b = simulation.pair()
        ends: dict[tuple[int, int], int] = {}

        def watch(node: int, event: Event, ends: dict[tuple[int, int], int] = ends) -> None:
            conn = getattr(event, "conn", None)
            if conn is None:
                return
            assert (node, conn) not in ends, event
            if isinstance(event, Closed | ConnectFailed):
                ends[(node, conn)] = 1

        a.on_event = lambda event, watch=watch: watch(0, event)
        b.on_event = lambda event, watch=watch: watch(1, event)
        b.engine.listen(80)
        dialed = [a.connect(b.address, 80 if n else 81) for n in range(6)]
        for _ in range(40):
            simulation.run(chance.uniform(0, 0.1))
            node = chance.choice([a, b])
            conns = dialed if node is a else [event.conn for event in b.log if isinstance(event, Accepted)]
            if not conns:
                continue
            conn = chance.choice(conns)
            action = chance.choice(["write", "write", "write_eof", "close", "abort", "pause_reading", "resume_reading"])
            if action == "write":
                node.engine.write(conn, payload(seed, 3000))
            else:
                getattr(node.engine, action)(conn)
            node.flush()
        for node, conns in ((a, dialed), (b, [event.conn for event in b.log if isinstance(event, Accepted)])):
            for conn in conns:
                node.engine.abort(conn)
            node.flush()
        simulation.run(300)
        assert all((0, conn) in ends for conn in dialed)
        assert all((1, event.conn) in ends for event in b.log if isinstance(event, Accepted))
        for node in (a, b):
            counters = node.engine.counters()
            assert (counters["connections"], counters["half_open"], counters["internal_error"]) == (0, 0, 0)


def test_nobody_listening_refuses() -> None:
    """A port that the rules allow and nobody listens on answers a dial with a refusal."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn = a.connect(b.address, 81)
    assert simulation.run(2, lambda: a.end(conn) is not None)
    assert a.end(conn) == "refused"
    assert b.engine.counters()["not_listening"] == 1


def test_dial_to_silence_times_out() -> None:
    """Without any answer a dial ends after the connect timeout."""
    simulation = Simulation()
    a, b = simulation.pair()
    a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    simulation.filter = lambda crossing: False
    conn = a.connect(b.address, 80)
    simulation.run(59)
    assert a.end(conn) is None
    simulation.run(2)
    assert a.end(conn) == "timeout"
    assert a.engine.counters()["connections"] == 0


def test_idle_connection_lives() -> None:
    """The connect timeout is no timeout of the connection: after an hour of silence it still works."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    simulation.run(3600)
    a.send(conn, b"good morning")
    assert simulation.run(10, lambda: bytes(b.received.get(accepted, b"")) == b"good morning")


def test_dead_peer_is_noticed() -> None:
    """When the other end vanishes, written bytes end the connection in minutes, an idle one within a quarter hour."""
    simulation = Simulation()
    a, b = simulation.pair()
    busy, _ = simulation.connection(a, b)
    idle, _ = simulation.connection(a, b)
    simulation.run(200)
    simulation.filter = lambda crossing: False
    a.send(busy, b"anybody?")
    simulation.run(90)
    assert a.end(busy) is None
    simulation.run(70)
    assert a.end(busy) == "timeout"
    assert a.end(idle) is None
    simulation.run(900)
    assert a.end(idle) == "timeout"
    assert a.engine.counters()["connections"] == 0


def test_paused_reader_stops_the_sender_and_loses_nothing() -> None:
    """While reading is paused at most the two buffers fill; after resuming everything arrives without delay."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    b.engine.pause_reading(accepted)
    data = payload(5, 500_000)
    a.send(conn, data)
    simulation.run(400)
    assert accepted not in b.received
    assert a.unsent(conn) >= len(data) - 65536 * 2
    assert a.end(conn) is None
    start = simulation.now
    b.engine.resume_reading(accepted)
    b.flush()
    assert simulation.run(60, lambda: len(b.received.get(accepted, b"")) == len(data))
    assert bytes(b.received[accepted]) == data
    assert simulation.now - start < 2


def test_paused_reader_reads_to_the_end_before_it_hears_of_it() -> None:
    """A connection that ended well while its reader paused gives its data and its end first, whenever that is."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    order: list[str] = []
    b.on_event = lambda event: order.append(type(event).__name__)
    b.engine.pause_reading(accepted)
    a.send(conn, b"last words")
    a.engine.write_eof(conn)
    b.engine.write_eof(accepted)
    a.flush()
    b.flush()
    simulation.run(100)
    assert a.end(conn) == "finished"
    assert order == []
    b.engine.resume_reading(accepted)
    b.flush()
    assert order == ["Data", "Eof", "Closed"]
    assert bytes(b.received[accepted]) == b"last words"


@pytest.mark.parametrize("call", ["close", "abort"])
def test_owner_may_give_up_what_it_never_read(call: str) -> None:
    """A connection that ended while its reader paused, and is then given up, ends as `local`."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    b.engine.pause_reading(accepted)
    a.send(conn, b"unread")
    a.engine.write_eof(conn)
    b.engine.write_eof(accepted)
    a.flush()
    b.flush()
    simulation.run(100)
    getattr(b.engine, call)(accepted)
    b.flush()
    assert b.end(accepted) == "local"
    assert b.engine.counters()["connections"] == 0


def test_calls_on_what_is_gone_do_nothing() -> None:
    """Every call on a connection that never was, or is no more, is quiet."""
    engine = Engine(bytes(31) + b"\1")
    for conn in (0, 1, 2**63):
        assert engine.write(conn, b"x") == 0
        assert engine.unsent(conn) == 0
        for call in (engine.write_eof, engine.close, engine.abort, engine.pause_reading, engine.resume_reading):
            call(conn)
    assert engine.events() == []
    assert not engine.pending


def test_nothing_can_be_written_before_and_after() -> None:
    """Bytes are taken between `Connected` and our own end of stream only."""
    simulation = Simulation()
    a, b = simulation.pair()
    b.engine.listen(80)
    conn = a.connect(b.address, 80)
    assert a.engine.write(conn, b"too early") == 0
    assert simulation.run(5, lambda: bool(a.of(Connected)))
    assert a.engine.write(conn, b"now") == 3
    a.engine.write_eof(conn)
    assert a.engine.write(conn, b"too late") == 0


def test_connections_and_bytes_are_capped() -> None:
    """Over the caps dials raise and arrivals are dropped and counted; what exists goes on, and room comes back."""
    simulation = Simulation()
    a = simulation.node(["100.64.0.1"])
    b = simulation.node(["100.64.0.2"], max_connections=3)
    c = simulation.node(["100.64.0.3"], max_buffer_bytes=2 * FIRST_BYTES)
    simulation.introduce(a, b)
    simulation.introduce(a, c)
    simulation.introduce(b, c)
    conns = [simulation.connection(a, b)[0] for _ in range(3)]
    late = a.connect(b.address, 80)
    simulation.run(10)
    assert a.end(late) is None
    assert b.engine.counters()["limit_reached"] >= 1
    with pytest.raises(LimitReached):
        b.connect(a.address, 80)
    a.engine.abort(conns[0])
    a.flush()
    assert simulation.run(60, lambda: a.end(late) is not None or len(b.of(Accepted)) == 4)
    assert a.end(late) is None
    a.engine.listen(80)
    for _ in range(2):
        c.connect(a.address, 80)
    with pytest.raises(LimitReached):
        c.connect(a.address, 80)
    assert c.engine.counters()["buffer_bytes"] == 2 * FIRST_BYTES


def test_promise_10_peers_that_take_all_they_can_leave_room() -> None:
    """Two members that open connections without end fill neither the others' room nor the one for our own dials."""
    simulation = Simulation()
    server = simulation.node(["100.64.0.1"], max_connections=40, reserved_for_dials=8, fair=True)
    server.engine.listen(80)
    peers = [simulation.node([f"100.64.0.{number}"]) for number in range(2, 6)]
    for peer in peers:
        simulation.introduce(server, peer)
    greedy, other, third, modest = peers
    for peer, room in ((greedy, 16), (other, 8), (third, 4)):
        for _ in range(50):
            peer.connect(server.address, 80)
        simulation.run(2)
        assert len(peer.of(Connected)) == room
    counters = server.engine.counters()
    assert counters["connections"] == 28
    assert counters["share_reached"] >= 50 - 4
    assert counters["limit_reached"] == 0

    simulation.connection(modest, server)
    modest.engine.listen(80)
    for _ in range(8):
        server.connect(modest.address, 80)
    assert simulation.run(2, lambda: len(server.of(Connected)) == 8)

    for event in greedy.of(Connected):
        greedy.engine.abort(event.conn)
    greedy.flush()
    assert simulation.run(5, lambda: server.engine.counters()["connections"] < 24)
    modest.connect(server.address, 80)
    assert simulation.run(60, lambda: len(modest.of(Connected)) == 2)


def test_promise_10_dials_take_what_is_reserved_and_no_more() -> None:
    """Dials may fill everything, then they raise; inbound connections stop short of the room for dials."""
    simulation = Simulation()
    server, peer = (
        simulation.node(["100.64.0.1"], max_connections=6, reserved_for_dials=2),
        simulation.node(["100.64.0.2"]),
    )
    simulation.introduce(server, peer)
    for _ in range(4):
        simulation.connection(peer, server)
    peer.connect(server.address, 80)
    simulation.run(2)
    assert server.engine.counters()["limit_reached"] >= 1
    peer.engine.listen(80)
    for _ in range(2):
        server.connect(peer.address, 80)
    with pytest.raises(LimitReached):
        server.connect(peer.address, 80)


def test_backlog_bounds_half_open_connections() -> None:
    """Openings that are never completed fill the backlog, others are dropped, and all end by themselves."""
    simulation = Simulation()
    a, b = simulation.pair()
    a.engine.handshake(b.engine.public_key)
    simulation.run(1)
    b.engine.listen(80, 5)
    simulation.filter = lambda crossing: crossing.source == a.endpoint
    for _ in range(8):
        a.connect(b.address, 80)
    simulation.run(1)
    assert b.engine.counters()["half_open"] == 5
    assert b.engine.counters()["backlog_full"] == 3
    a.endpoint = Endpoint("192.0.2.99", 1)
    simulation.filter = lambda crossing: False
    simulation.run(60)
    assert b.engine.counters()["half_open"] == 0
    assert b.engine.counters()["connections"] == 0
    assert b.of(Closed) == []


def test_many_connections_at_once() -> None:
    """Five hundred dials in the same instant are all accepted, and all carry their own bytes."""
    simulation = Simulation()
    a, b = simulation.pair()
    b.engine.listen(80, 512)
    conns = [a.connect(b.address, 80) for _ in range(500)]
    assert simulation.run(20, lambda: len(b.of(Accepted)) == 500 and len(a.of(Connected)) == 500)
    for conn in conns:
        a.send(conn, b"%d" % conn)
    simulation.run(10)
    ports = {event.conn: event.local[1] for event in a.log if isinstance(event, Connected)}
    for event in [event for event in b.log if isinstance(event, Accepted)]:
        assert ports[int(b.received[event.conn])] == event.remote[1]


def test_one_busy_connection_does_not_starve_another() -> None:
    """A request beside a bulk transfer is answered long before the transfer ends."""
    simulation = Simulation(weather=Weather(delay=0.005))
    a, b = simulation.pair()
    bulk, _ = simulation.connection(a, b)
    small, small_there = simulation.connection(a, b)
    a.send(bulk, payload(6, 5_000_000))
    simulation.run(0.1)
    a.send(small, b"quick")
    assert simulation.run(0.2, lambda: bytes(b.received.get(small_there, b"")) == b"quick")
    assert a.unsent(bulk) > 0


def test_finished_connection_acknowledges_a_repeated_end() -> None:
    """When the last acknowledgment is lost, the end that finished first repeats it, so the other finishes well too."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    a.engine.write_eof(conn)
    a.flush()
    simulation.run(2)
    b.engine.write_eof(accepted)
    b.flush()
    lost: list[float] = []

    def lose_one(crossing: object) -> bool:
        if getattr(crossing, "source", None) == a.endpoint and not lost:
            lost.append(simulation.now)
            return False
        return True

    simulation.filter = lose_one
    simulation.run(30)
    assert lost
    assert (a.end(conn), b.end(accepted)) == ("finished", "finished")


def test_sequence_numbers_cannot_be_told_from_one_another() -> None:
    """Without a seed two engines with the same history choose other ports each time: the system's chance, not ours."""
    ports: set[int] = set()
    for _ in range(8):
        engine = Engine(bytes(31) + b"\1")
        engine.set_addresses(["100.64.0.1"])
        peer = Engine(bytes(31) + b"\2")
        peer.set_addresses(["100.64.0.2"])
        peer.set_inbound([("0.0.0.0/0", 6, 80, 80)])
        peer.listen(80)
        engine.set_peer(peer.public_key, ["100.64.0.2"], endpoint=Endpoint("192.0.2.2", 2))
        peer.set_peer(engine.public_key, ["100.64.0.1"], endpoint=Endpoint("192.0.2.1", 1))
        engine.connect("100.64.0.2", 80, 1.0)
        for _ in range(8):
            for one, other, source in (
                (engine, peer, Endpoint("192.0.2.1", 1)),
                (peer, engine, Endpoint("192.0.2.2", 2)),
            ):
                one.advance(1.0)
                for datagram, _ in one.transmits():
                    other.receive(datagram, source, 1.0)
        (event,) = [event for event in peer.events() if isinstance(event, Accepted)]
        ports.add(event.remote[1])
    assert len(ports) > 1


def test_removal_of_a_peer_or_an_address_ends_connections() -> None:
    """A connection ends with its peer, with its peer's address, and with our own."""
    simulation = Simulation()
    a, b = simulation.pair()
    first, first_there = simulation.connection(a, b)
    b.engine.set_peer(a.engine.public_key, ["fd00::1"])
    b.flush()
    assert b.end(first_there) == "peer_removed"
    second, second_there = simulation.connection(a, b, address="fd00::2")
    b.engine.set_addresses(["100.64.0.2"])
    b.flush()
    assert b.end(second_there) == "address_removed"
    a.engine.remove_peer(b.engine.public_key)
    a.flush()
    assert (a.end(first), a.end(second)) == ("peer_removed", "peer_removed")
    assert a.engine.counters()["connections"] == 0


def test_connection_dies_when_its_address_becomes_anothers() -> None:
    """When an address moves to another peer, connections made under it end: they are not that peer's."""
    simulation = Simulation()
    a, b = simulation.pair()
    _, accepted = simulation.connection(a, b)
    b.engine.set_peer(b"n" * 32, ["100.64.0.1"])
    b.flush()
    assert b.end(accepted) == "peer_removed"


def test_data_events_carry_bytes() -> None:
    """What a reader gets is `bytes`, never empty."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, _ = simulation.connection(a, b)
    seen: list[Data] = []
    b.on_event = lambda event: seen.append(event) if isinstance(event, Data) else None
    a.send(conn, payload(7, 100_000))
    simulation.run(5)
    assert b"".join(event.data for event in seen) == payload(7, 100_000)
    assert all(type(event.data) is bytes and event.data for event in seen)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_anything_like_bytes_can_be_written(kind: type) -> None:
    """`write` takes bytes, bytearray and memoryview, slices of them too."""
    simulation = Simulation()
    a, b = simulation.pair()
    conn, accepted = simulation.connection(a, b)
    assert a.engine.write(conn, kind(b"0123456789")[2:5]) == 3
    a.flush()
    simulation.run(1)
    assert bytes(b.received[accepted]) == b"234"
