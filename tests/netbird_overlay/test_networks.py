"""Connections of many engines survive all that chance does to the paths and machines under them."""

from __future__ import annotations

import os

import pytest

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Closed, Handshake
from netbird_overlay.simulation import Crossing, Node, Simulation
from tests.netbird_overlay.turbulence import Turbulence

SEEDS = int(os.environ.get("NETWORK_SEEDS", "12"))
"""Seeds of each test; thousands by hand."""
PATIENCE = 60.0
"""Maximum time in seconds until the next byte, once all machines and paths work again: the longest interval of
retransmissions (RFC 6298 §2.5). A connection that found nobody for 20 seconds waits about as long again, unless a new
path or session ends the wait."""


def transfer(simulation: Simulation, size: int) -> tuple[Node, Node, int, int, bytes]:
    """Return two nodes, a connection's number at each, and data that is on its way in both directions."""
    a, b = simulation.pair()
    simulation.carrier(a, 1, b, 2)
    conn, accepted = simulation.connection(a, b)
    data = simulation.random.randbytes(size)
    a.send(conn, data)
    b.send(accepted, data)
    return a, b, conn, accepted, data


@pytest.mark.parametrize("silence", [1.0, 5.0, 20.0])
def test_acknowledgments_lost_on_both_sides_stop_no_connection(silence: float) -> None:
    """Both ends have all that was sent, and neither learns it before both retransmit."""
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 100_000)
    begin, end = simulation.now + 0.005, simulation.now + 0.005 + silence
    simulation.filter = lambda crossing: not begin < crossing.at < end
    assert simulation.run(3 * silence + 5, lambda: b.received.get(accepted) == a.received.get(conn) == data)


def test_new_path_ends_the_wait_for_the_old_one() -> None:
    """A retransmission that is due in half a minute leaves at once on another path."""
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 100_000)
    simulation.filter = lambda crossing: not isinstance(crossing.destination, Endpoint)
    simulation.run(30)
    a.engine.pin(b.engine.public_key, 1)
    b.engine.pin(a.engine.public_key, 2)
    simulation.touch(a)
    simulation.touch(b)
    assert simulation.run(2, lambda: b.received.get(accepted) == a.received.get(conn) == data)


def test_new_session_ends_the_wait_for_the_old_one() -> None:
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 100_000)
    simulation.filter = lambda crossing: False
    simulation.run(30)
    simulation.filter = None
    a.engine.handshake(b.engine.public_key)
    simulation.touch(a)
    assert simulation.run(2, lambda: b.received.get(accepted) == a.received.get(conn) == data)


def test_change_of_a_working_path_repeats_nothing() -> None:
    """A connection that gets its acknowledgments goes on as it was."""
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 300_000)
    simulation.keep_crossings = True
    for _ in range(4):
        simulation.run(0.03)
        for path, other in ((1, 2), (b.endpoint, a.endpoint)):
            a.engine.pin(b.engine.public_key, path)
            b.engine.pin(a.engine.public_key, other)
            simulation.run(0.03)
    assert simulation.run(5, lambda: b.received.get(accepted) == a.received.get(conn) == data)
    assert sum(len(crossing.datagram) for crossing in simulation.crossings) < 2 * len(data) * 1.2


def test_pinned_peer_keeps_its_path_when_datagrams_come_from_elsewhere() -> None:
    simulation = Simulation(keep_crossings=True)
    a, b, conn, accepted, data = transfer(simulation, 10_000)
    a.engine.pin(b.engine.public_key, 1)
    b.engine.pin(a.engine.public_key, a.endpoint)
    simulation.run(1, lambda: b.received.get(accepted) == data)
    simulation.crossings.clear()
    b.send(accepted, data)
    simulation.run(1, lambda: len(a.received.get(conn, b"")) == 2 * len(data))
    sources = {crossing.source for crossing in simulation.crossings}
    assert sources == {b.endpoint, 2}  # a has datagrams from b's address, and answers by the carrier


# Turbulence ------------------------------------------------------------------------------------------------------


def play(turbulence: Turbulence, *, connections: int, rounds: int) -> None:
    """Open connections, write in both directions while chance disturbs, and wait until all has arrived."""
    random = turbulence.random
    streams = []
    for number in range(connections):
        streams += turbulence.connect(*random.choice(turbulence.pairs), 80 + number)
    for _ in range(rounds):
        for _ in range(random.randrange(4)):
            random.choice(streams).write(random.randbytes(random.randrange(1, 40_000)), turbulence.now)
        if random.random() < 0.6:
            turbulence.disturb()
        turbulence.run(random.uniform(0.1, 3))
    assert turbulence.run(120, turbulence.complete), turbulence.progress()
    turbulence.check()
    assert turbulence.longest_wait <= PATIENCE


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("count", [2, 3, 8])
def test_bytes_arrive_in_order_whatever_happens(count: int, seed: int) -> None:
    play(Turbulence(1000 * count + seed, count), connections=2 * count, rounds=20)


@pytest.mark.parametrize("seed", range(max(1, SEEDS // 8)))
@pytest.mark.parametrize("count", [20, 50])
def test_bytes_arrive_in_order_in_large_networks(count: int, seed: int) -> None:
    """One engine knows all the others, and each of those its neighbors."""
    neighbors = [(0, other) for other in range(1, count)] + [(each, each + 1) for each in range(1, count - 1)]
    play(Turbulence(1000 * count + seed, count, neighbors=neighbors), connections=20, rounds=20)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_keys_are_renewed_under_connections_that_trickle(seed: int) -> None:
    """Twenty minutes of little data: keys are renewed several times, by whichever side, on changing paths."""
    turbulence = Turbulence(seed, 3)
    streams = [*turbulence.connect(*turbulence.pairs[0]), *turbulence.connect(*turbulence.pairs[1])]
    for _ in range(120):
        stream = turbulence.random.choice(streams)
        stream.write(turbulence.random.randbytes(100), turbulence.now)
        if turbulence.random.random() < 0.2:
            turbulence.disturb()
        turbulence.run(10)
    assert turbulence.run(60, turbulence.complete)
    turbulence.check()
    assert len(turbulence.nodes[0].of(Handshake)) >= 8
    assert turbulence.longest_wait <= PATIENCE


@pytest.mark.parametrize("seed", range(max(1, SEEDS // 12)))
@pytest.mark.parametrize("jump", [60.0, 3600.0, 86400.0])
def test_clock_that_jumps_breaks_nothing_for_good(jump: float, seed: int) -> None:
    """A machine that was suspended reaches the others again, and they reach it, whatever became of its connections."""
    turbulence = Turbulence(seed, 3)
    a, b, _ = turbulence.nodes
    turbulence.connect(a, b)[0].write(bytes(10_000), turbulence.now)
    turbulence.run(turbulence.random.uniform(0, 2))
    turbulence.sleep(a, jump)
    turbulence.simulation.run(jump)
    turbulence.streams.clear()
    turbulence.run(5)
    for client, server, port in ((a, b, 81), (b, a, 82)):
        turbulence.connect(client, server, port)[0].write(bytes(10_000), turbulence.now)
    assert turbulence.run(30, turbulence.complete)
    turbulence.check()


@pytest.mark.parametrize("back", [0.5, 100.0, 1e9])
def test_clock_that_goes_back_stands_still(back: float) -> None:
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 10_000)
    a.engine.advance(simulation.now - back)
    a.engine.receive(bytes(32), b.endpoint, simulation.now - back)
    assert simulation.run(5, lambda: b.received.get(accepted) == a.received.get(conn) == data)
    assert not a.of(Closed, conn)


def test_relay_carries_a_whole_transfer_while_datagrams_stop() -> None:
    """The other order of a fall-back: the path changes before, so that no byte waits."""
    simulation = Simulation()
    a, b, conn, accepted, data = transfer(simulation, 1_000_000)
    simulation.run(0.1)
    a.engine.pin(b.engine.public_key, 1)
    b.engine.pin(a.engine.public_key, 2)
    cut: list[Crossing] = []

    def passes(crossing: Crossing) -> bool:
        if isinstance(crossing.destination, Endpoint):
            cut.append(crossing)
            return False
        return True

    simulation.filter = passes
    assert simulation.run(10, lambda: b.received.get(accepted) == a.received.get(conn) == data)
    assert cut == []
