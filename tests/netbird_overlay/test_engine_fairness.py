"""Peers that take what they can: the others keep their rate, their room to connect, and their connections."""

from __future__ import annotations

import pytest

from netbird_overlay.engine import Accepted, Closed, Connected
from netbird_overlay.simulation import Node, Simulation, Weather
from tests.netbird_overlay.test_engine_packets import ACK, FIN, PSH, RST, SYN, RawPeer, server, tcp, tcp_fields


def peers(count: int, **options: int) -> tuple[Simulation, Node, list[Node]]:
    """A server, and peers that know it and not one another."""
    simulation = Simulation(weather=Weather(delay=0.01))
    server = simulation.node(["100.64.0.1"], **options)  # type: ignore[arg-type]
    others = [simulation.node([f"100.64.0.{number}"]) for number in range(2, 2 + count)]
    for other in others:
        simulation.introduce(server, other)
    return simulation, server, others


def test_promise_10_half_open_connections_of_one_peer_do_not_close_the_port() -> None:
    """Thousands of SYNs by one peer: another peer's connections are all established, at once."""
    simulation, server, (flooder, modest) = peers(2)
    flooder.engine.handshake(server.engine.public_key)
    simulation.run(1)
    # The flooder's SYNs arrive, and it never hears the answers.
    simulation.filter = lambda crossing: crossing.destination != flooder.endpoint
    server.engine.listen(80, 64)
    for round_ in range(10):
        for _ in range(200):
            flooder.connect(server.address, 80)
        simulation.run(0.1)
        modest.connect(server.address, 80)
        simulation.run(0.1)
        assert len(modest.of(Connected)) == round_ + 1
    counters = server.engine.counters()
    assert counters["half_open"] <= 64
    assert counters["half_open_evicted"] == 10
    assert counters["backlog_full"] > 1000
    assert counters["accepted"] == 10


def test_reader_that_takes_nothing_loses_its_connection() -> None:
    """A reader with a closed window that answers every probe keeps its connection for a quarter of an hour only."""
    simulation, server, (reader,) = peers(1)
    conn, accepted = simulation.connection(reader, server)
    reader.engine.pause_reading(conn)
    server.send(accepted, bytes(1 << 20))
    simulation.run(14 * 60)
    assert server.end(accepted) is None
    simulation.run(2 * 60)
    assert (server.end(accepted), reader.end(conn)) == ("timeout", "reset")
    assert server.engine.counters()["buffer_bytes"] == 0


def test_slow_reader_keeps_its_connection() -> None:
    """A reader that takes some bytes now and then is slow, not stalled."""
    simulation, server, (reader,) = peers(1)
    conn, accepted = simulation.connection(reader, server)
    server.send(accepted, bytes(10 << 20))
    for _ in range(12):
        reader.engine.pause_reading(conn)
        simulation.run(10 * 60)
        reader.engine.resume_reading(conn)
        reader.flush()
        simulation.run(0.02)
    assert server.end(accepted) is None
    assert reader.unsent(conn) == 0


def test_closed_connection_of_a_reader_that_takes_nothing_ends_within_a_minute() -> None:
    """After `close`, what the other end does not take is given up."""
    simulation, server, (reader,) = peers(1)
    conn, accepted = simulation.connection(reader, server)
    reader.engine.pause_reading(conn)
    server.engine.write(accepted, bytes(100_000))
    server.engine.close(accepted)
    server.flush()
    simulation.run(61)
    assert server.engine.counters()["connections"] == 0


def finished() -> tuple[RawPeer, int]:
    """A peer whose connection ended in order, the server's end first. Return its next number."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK | PSH, b"bye", seq=1001, ack=seq + 1))
    (accepted, _) = [event for event in engine.events() if not isinstance(event, Connected)][-2:]
    assert isinstance(accepted, Accepted)
    engine.write_eof(accepted.conn)
    peer.replies()
    peer.send(tcp(ACK, seq=1004, ack=seq + 2))
    replies = peer.exchange(tcp(ACK | FIN, seq=1004, ack=seq + 2))
    assert tcp_fields(replies[-1])[2] == 1005
    engine.events()
    assert engine.counters()["connections"] == 0
    return peer, 1005


@pytest.mark.parametrize(("offset", "opens"), [(0, True), (50_000, True), (-1, False), (-900, False)])
def test_late_duplicate_of_a_syn_opens_nothing(offset: int, opens: bool) -> None:
    """A flow in TIME-WAIT opens again for a SYN above the last sequence number; an older one is only acknowledged."""
    peer, after = finished()
    (answer,) = peer.exchange(tcp(SYN, seq=after + offset))
    flags, _, acknowledged = tcp_fields(answer)
    if opens:
        assert (flags, acknowledged) == (SYN | ACK, after + offset + 1)
    else:
        assert (flags, acknowledged) == (ACK, after)
        assert peer.engine.counters()["half_open"] == 0


def test_peer_that_lost_its_connections_opens_a_flow_in_time_wait_again() -> None:
    """It answers our acknowledgment with a reset at the very number, and its next SYN is accepted."""
    peer, after = finished()
    peer.exchange(tcp(SYN, seq=17))
    assert peer.exchange(tcp(RST, seq=after - 1)) == []
    assert tcp_fields(peer.exchange(tcp(SYN, seq=18))[0])[0] == ACK
    assert peer.exchange(tcp(RST, seq=after)) == []
    assert tcp_fields(peer.exchange(tcp(SYN, seq=19))[0])[0] == SYN | ACK


def test_segments_out_of_the_window_are_no_sign_of_life() -> None:
    """Junk does not keep a connection whose data is not acknowledged: only segments that the stack accepts do."""
    engine, peer = server()
    (answer,) = peer.exchange(tcp(SYN))
    _, seq, _ = tcp_fields(answer)
    peer.send(tcp(ACK | PSH, b"hello", seq=1001, ack=seq + 1))
    (conn,) = (event.conn for event in engine.events() if isinstance(event, Accepted))
    engine.write(conn, b"anybody?")
    closed: list[Closed] = []
    for _ in range(16):
        peer.now += 10
        peer.send(tcp(ACK, seq=500_000_000, ack=seq + 1))
        engine.advance(peer.now)
        engine.transmits()
        closed += (event for event in engine.events() if isinstance(event, Closed))
    assert [event.reason for event in closed] == ["timeout"]
