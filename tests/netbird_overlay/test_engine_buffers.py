"""Memory of connections: small at first, larger by need, given back, and fair by peer and by engine."""

from __future__ import annotations

import gc

import pytest

from netbird_overlay.engine import BufferBudget, Connected, Engine
from netbird_overlay.simulation import Node, Simulation, Weather

FIRST_BYTES = (16 + 16 + 2) << 10
"""What a new connection takes: two buffers and itself."""
LIMIT = 4 << 20


def far(*, max_buffer_bytes: int = 256 << 20) -> tuple[Simulation, Node, Node]:
    """Two nodes a tenth of a second apart, there and back, with buffers of up to 4 MiB."""
    simulation = Simulation(weather=Weather(delay=0.05))
    a, b = (
        simulation.node([f"100.64.0.{n}"], receive_buffer=LIMIT, send_buffer=LIMIT, max_buffer_bytes=max_buffer_bytes)
        for n in (1, 2)
    )
    simulation.introduce(a, b)
    return simulation, a, b


def held(node: Node) -> int:
    return node.engine.counters()["buffer_bytes"]


def test_idle_connections_are_small() -> None:
    """A connection without data holds its first buffers and no more."""
    simulation, a, b = far()
    for _ in range(10):
        simulation.connection(a, b)
    assert held(a) == held(b) == 10 * FIRST_BYTES


def test_buffers_grow_by_need_and_are_given_back() -> None:
    """A fast transfer gets large buffers at both ends; a minute of silence later they are small, and still work."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, bytes(16 << 20))
    assert simulation.run(30, lambda: len(b.received.get(accepted, b"")) == 16 << 20)
    assert held(a) > 1 << 20
    assert held(b) > 1 << 20
    simulation.run(200)
    assert held(a) == held(b) == FIRST_BYTES
    b.received[accepted].clear()
    a.send(conn, bytes(1 << 20))
    assert simulation.run(10, lambda: len(b.received[accepted]) == 1 << 20)
    a.engine.abort(conn)
    a.flush()
    simulation.run(1)
    assert held(a) == held(b) == 0


def test_slow_transfer_needs_no_large_buffers() -> None:
    """Data far below one window for each round trip leaves the buffers as they are, however much it is in all."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    for _ in range(200):
        a.send(conn, bytes(4000))
        simulation.run(0.2)
    assert len(b.received[accepted]) == 800_000
    assert held(a) == held(b) == FIRST_BYTES


def test_paused_reader_gets_no_larger_buffer() -> None:
    """A reader that does not read does not make its buffer grow."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    b.engine.pause_reading(accepted)
    a.send(conn, bytes(4 << 20))
    simulation.run(30)
    assert held(b) == FIRST_BYTES


def test_buffers_stay_within_the_limit_of_the_engine() -> None:
    """Where memory is short, connections grow less and still transfer everything."""
    simulation, a, b = far(max_buffer_bytes=1 << 20)
    pairs = [simulation.connection(a, b) for _ in range(4)]
    for conn, _ in pairs:
        a.send(conn, bytes(2 << 20))
    most = 0
    for _ in range(600):
        simulation.run(0.1)
        most = max(most, held(a), held(b))
        if all(len(b.received.get(accepted, b"")) == 2 << 20 for _, accepted in pairs):
            break
    else:
        pytest.fail("the transfers never ended")
    assert 4 * FIRST_BYTES < most <= 1 << 20


def test_promise_10_peer_that_makes_buffers_grow_leaves_room_for_others() -> None:
    """One peer's transfers take a third of the memory at most, so it can still connect, and another's buffers grow."""
    simulation = Simulation(weather=Weather(delay=0.05))
    server = simulation.node(["100.64.0.1"], receive_buffer=LIMIT, send_buffer=LIMIT, max_buffer_bytes=8 << 20)
    greedy, other = (simulation.node([f"100.64.0.{n}"], receive_buffer=LIMIT, send_buffer=LIMIT) for n in (2, 3))
    for peer in (greedy, other):
        simulation.introduce(server, peer)
    for _ in range(16):
        conn, _ = simulation.connection(greedy, server)
        greedy.send(conn, bytes(8 << 20))
    simulation.run(2)
    assert 2 << 20 < held(server) <= (8 << 20) // 3 + 16 * FIRST_BYTES
    conn, accepted = simulation.connection(other, server)
    other.send(conn, bytes(4 << 20))
    assert simulation.run(5, lambda: len(server.received.get(accepted, b"")) == 4 << 20)
    assert held(server) <= 8 << 20


def test_promise_10_engines_share_one_budget() -> None:
    """The tunnels of one process share their bytes: none takes all, and a released one gives all back."""
    budget = BufferBudget(40 * FIRST_BYTES)
    simulation = Simulation()
    servers = [simulation.node([f"100.64.{n}.1"], budget=budget) for n in (1, 2)]
    clients = [simulation.node([f"100.64.{n}.2"]) for n in (1, 2)]
    for server, client in zip(servers, clients, strict=True):
        simulation.introduce(server, client)
        server.engine.listen(80, 1000)
        for _ in range(50):
            client.connect(server.address, 80)
        simulation.run(5)
    first, second = (len(client.of(Connected)) for client in clients)
    assert (first, second) == (10, 8)
    assert budget.used == 18 * FIRST_BYTES
    assert servers[0].engine.counters()["limit_reached"] > 0
    del server, servers, client, clients, simulation
    gc.collect()
    assert budget.used == 0


def test_budget_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        BufferBudget(0)
    assert BufferBudget(1 << 20).limit == 1 << 20
    assert Engine(bytes(31) + b"\1", budget=BufferBudget(1)).counters()["buffer_bytes"] == 0
