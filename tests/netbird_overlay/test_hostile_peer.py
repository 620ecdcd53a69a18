"""One valid peer that does all the harm it can: the others keep their rate, and memory stays within the stated cap."""

from __future__ import annotations

import random

import pytest

from netbird_overlay.engine import Accepted, Connected, UdpReceived
from netbird_overlay.simulation import ANYONE, Simulation, Weather
from tests.netbird_overlay.test_engine_packets import ACK, FIN, PSH, RST, SYN, RawPeer, ip, tcp
from tests.netbird_overlay.test_engine_udp import segment

CAP = 32 << 20
SIZE = 4 << 20
CONNECTIONS = 10_000


class House:
    """A server with two modest peers, each of which has a connection, and a hostile one."""

    def __init__(self) -> None:
        self.simulation = Simulation(weather=Weather(delay=0.02))
        inbound = [*ANYONE, ("0.0.0.0/0", 17, 53, 53)]
        options = {"receive_buffer": 1 << 20, "send_buffer": 1 << 20}
        self.server = self.simulation.node(
            ["100.64.0.2"], inbound=inbound, max_connections=4000, fair=True, max_buffer_bytes=CAP, **options
        )
        self.server.engine.udp_listen(53)
        self.modest = [self.simulation.node([f"100.64.0.{n}"], **options) for n in (3, 4)]
        self.hostile = self.simulation.node(
            ["100.64.0.5"], max_connections=2 * CONNECTIONS, max_buffer_bytes=1 << 30, **options
        )
        for node in (*self.modest, self.hostile):
            self.simulation.introduce(self.server, node)
        self.served = [self.simulation.connection(node, self.server) for node in self.modest]
        self.most = 0

    def rate(self, attack: object) -> float:
        """Let the modest peers download, each once, while `attack` goes on each 10 ms. Return bytes a second."""
        start = self.simulation.now
        for _, accepted in self.served:
            self.server.send(accepted, bytes(SIZE))
        ended: dict[int, float] = {}
        while len(ended) < len(self.modest):
            if callable(attack):
                attack()
            self.simulation.run(0.01)
            self.most = max(self.most, self.server.engine.counters()["buffer_bytes"])
            for number, (node, (conn, _)) in enumerate(zip(self.modest, self.served, strict=True)):
                if len(node.received.get(conn, b"")) == SIZE:
                    ended.setdefault(number, self.simulation.now)
            assert self.simulation.now < start + 60
        return SIZE / (max(ended.values()) - start)

    def raw(self) -> RawPeer:
        """A peer at 100.64.0.9 that sends any inner packet."""
        return RawPeer(self.server.engine, self.simulation.now)


def many_connections(house: House) -> object:
    """Ten thousand connections, as fast as they go, and none is closed."""
    left = CONNECTIONS

    def attack() -> None:
        nonlocal left
        for _ in range(min(left, 200)):
            house.hostile.engine.connect(house.server.address, 80, house.simulation.now)
        left -= min(left, 200)
        house.hostile.flush()

    return attack


def closed_windows(house: House) -> object:
    """A hundred downloads that the hostile peer never reads."""
    conns = [house.simulation.connection(house.hostile, house.server) for _ in range(100)]

    def attack() -> None:
        while conns:
            conn, accepted = conns.pop()
            house.hostile.engine.pause_reading(conn)
            house.server.send(accepted, bytes(SIZE))

    return attack


def half_open(house: House) -> object:
    """SYNs from ever new ports that are never completed, some reset, some repeated."""
    peer, chance = house.raw(), random.Random(1)

    def attack() -> None:
        peer.now = house.simulation.now
        for _ in range(200):
            port = chance.randrange(1024, 65536)
            peer.send(tcp(SYN, source_port=port, seq=chance.randrange(1 << 32)))
            if chance.random() < 0.3:
                peer.send(tcp(RST, source_port=port, seq=1001))

    return attack


def junk(house: House) -> object:
    """Overlapping and wild segments, forged inner sources, fragments, floods of datagrams and of errors."""
    peer, chance = house.raw(), random.Random(2)
    peer.send(tcp(SYN))

    def attack() -> None:
        peer.now = house.simulation.now
        for _ in range(50):
            start = 1001 + chance.randrange(70_000)
            peer.send(
                tcp(ACK | PSH, chance.randbytes(chance.randrange(1200)), seq=start, ack=chance.randrange(1 << 32))
            )
            peer.send(tcp(chance.choice([FIN, RST, ACK, SYN | ACK, SYN | FIN]), seq=start, ack=start))
            peer.send(tcp(SYN, source=f"100.64.0.{chance.randrange(3, 6)}"))
            peer.send(ip(17, segment(b"x", source="100.64.0.3"), source="100.64.0.3"))
            peer.send(ip(6, chance.randbytes(40), fragment=0x2000))
            for _ in range(20):
                peer.send(ip(17, segment(chance.randbytes(100))))
            peer.send(ip(1, b"\3\3" + chance.randbytes(40)))

    return attack


@pytest.mark.parametrize("kind", [many_connections, closed_windows, half_open, junk])
def test_promise_10_hostile_peer_takes_no_rate_and_no_room(kind: object) -> None:
    """Other peers keep 90 % of their rate, can connect, and the server's memory stays within its cap."""
    quiet = House()
    undisturbed = quiet.rate(None)
    house = House()
    assert callable(kind)
    disturbed = house.rate(kind(house))
    assert disturbed >= 0.9 * undisturbed
    assert house.most <= CAP
    before = [len(node.of(Connected)) for node in house.modest]
    for node in house.modest:
        node.connect(house.server.address, 80)
    assert house.simulation.run(
        2, lambda: [len(node.of(Connected)) for node in house.modest] == [n + 1 for n in before]
    )
    counters = house.server.engine.counters()
    assert counters["internal_error"] == 0
    assert counters["buffer_bytes"] <= CAP
    keys = {node.engine.public_key for node in (*house.modest, house.hostile)}
    accepted = [event for event in house.server.of(Accepted) if isinstance(event, Accepted)]
    assert {event.peer for event in accepted if event.remote[0] != "100.64.0.9"} <= keys
    forged = [e for e in house.server.of(UdpReceived) if isinstance(e, UdpReceived) and e.remote[0] != "100.64.0.9"]
    assert forged == []


def test_ten_thousand_connections_are_counted_and_end_with_their_peer() -> None:
    """The peer gets half of the room; when it is removed, all of its memory is free."""
    house = House()
    attack = many_connections(house)
    assert callable(attack)
    for _ in range(60):
        attack()
        house.simulation.run(0.05)
    counters = house.server.engine.counters()
    assert 400 < counters["connections"] <= 2002
    assert counters["share_reached"] + counters["limit_reached"] + counters["backlog_full"] > CONNECTIONS // 2
    assert counters["buffer_bytes"] <= CAP // 2 + (2 << 20)
    house.server.engine.remove_peer(house.hostile.engine.public_key)
    house.server.flush()
    assert house.server.engine.counters()["connections"] == 2
