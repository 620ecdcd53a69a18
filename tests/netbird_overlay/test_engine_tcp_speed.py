"""Round trips that a transfer takes: slow start by bytes, growing windows, recovery from losses."""

import pytest

from netbird_overlay.simulation import Crossing, Node, Simulation, Weather

ROUND_TRIP = 0.1
"""Seconds. All datagrams of a turn arrive together, so that their receiver acknowledges them at once."""


def transfer(simulation: Simulation, a: Node, b: Node, size: int, *, limit: float = 60) -> float:
    """Return the number of round trips from the first byte written to the last one received."""
    conn, accepted = simulation.connection(a, b)
    start = simulation.now
    a.send(conn, bytes(size))
    assert simulation.run(limit, lambda: len(b.received.get(accepted, b"")) == size)
    return (simulation.now - start) / ROUND_TRIP


def far(seed: int = 0, **weather: float) -> tuple[Simulation, Node, Node]:
    """Two nodes a tenth of a second apart, there and back, with windows of up to 4 MiB."""
    simulation = Simulation(seed, Weather(delay=ROUND_TRIP / 2, **weather))
    a = simulation.node(["100.64.0.1"], receive_buffer=4 << 20, send_buffer=4 << 20)
    b = simulation.node(["100.64.0.2"], receive_buffer=4 << 20, send_buffer=4 << 20)
    simulation.introduce(a, b)
    return simulation, a, b


@pytest.mark.parametrize(("size", "most"), [(12 << 10, 1), (256 << 10, 6), (2 << 20, 9), (8 << 20, 12)])
def test_slow_start_doubles_each_round_trip(size: int, most: int) -> None:
    """A sender begins with ten segments and doubles, although its receiver acknowledges a whole batch with one ACK."""
    simulation, a, b = far()
    assert transfer(simulation, a, b, size) <= most


def warm(simulation: Simulation, a: Node, b: Node) -> tuple[int, int]:
    """Open a connection and exchange a little, so that the sender's estimate of the round trip settles."""
    conn, accepted = simulation.connection(a, b)
    for _ in range(20):
        a.send(conn, bytes(100))
        simulation.run(1)
    b.received[accepted].clear()
    return conn, accepted


def test_lost_tail_costs_less_than_a_second() -> None:
    """The last segment of an answer, lost once, arrives after the least retransmission timeout."""
    simulation, a, b = far()
    conn, accepted = warm(simulation, a, b)
    lost: list[Crossing] = []

    def lose(crossing: Crossing) -> bool:
        if crossing.source == a.endpoint and not lost:
            lost.append(crossing)
            return False
        return True

    simulation.filter = lose
    start = simulation.now
    a.send(conn, b"tail")
    assert simulation.run(5, lambda: bytes(b.received[accepted]) == b"tail")
    assert lost
    assert (simulation.now - start) / ROUND_TRIP < 3


def test_lost_segment_before_the_last_is_repaired_by_one_duplicate_acknowledgment() -> None:
    """Two segments in flight cause one duplicate acknowledgment, and that suffices: no timeout."""
    simulation, a, b = far()
    conn, accepted = warm(simulation, a, b)
    count = 0

    def lose_first(crossing: Crossing) -> bool:
        nonlocal count
        count += crossing.source == a.endpoint
        return not (crossing.source == a.endpoint and count == 1)

    simulation.filter = lose_first
    start = simulation.now
    a.send(conn, bytes(2000))
    assert simulation.run(5, lambda: len(b.received[accepted]) == 2000)
    assert (simulation.now - start) / ROUND_TRIP < 2


def test_burst_of_losses_is_repaired_within_round_trips_and_not_by_a_timeout_each() -> None:
    """Eight segments of one window are lost: the transfer goes on after some round trips."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, bytes(512 << 10))
    simulation.run(3)
    count = 0

    def lose_every_fourth(crossing: Crossing) -> bool:
        nonlocal count
        count += crossing.source == a.endpoint
        return not (crossing.source == a.endpoint and count <= 32 and count % 4 == 0)

    simulation.filter = lose_every_fourth
    start = simulation.now
    a.send(conn, bytes(512 << 10))
    assert simulation.run(60, lambda: len(b.received[accepted]) == 1 << 20)
    assert (simulation.now - start) / ROUND_TRIP < 20


def test_window_grows_after_a_loss_although_its_acknowledgments_come_in_batches() -> None:
    """A connection that lost one segment while it was slow gets faster by the bytes acknowledged, not by the acks."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    count = 0

    def lose_one(crossing: Crossing) -> bool:
        nonlocal count
        count += crossing.source == a.endpoint
        return not (crossing.source == a.endpoint and count == 12)

    simulation.filter = lose_one
    start = simulation.now
    a.send(conn, bytes(2 << 20))
    assert simulation.run(60, lambda: len(b.received.get(accepted, b"")) == 2 << 20)
    assert (simulation.now - start) / ROUND_TRIP < 65


def test_a_quarter_of_a_window_is_repaired_at_once() -> None:
    """The receiver reports what it has, so that all its holes are filled at once, and nothing is sent twice."""
    simulation, a, b = far()
    conn, accepted = simulation.connection(a, b)
    a.send(conn, bytes(512 << 10))
    simulation.run(3)
    lost = count = 0

    def lose_every_fourth(crossing: Crossing) -> bool:
        nonlocal lost, count
        if crossing.source != a.endpoint:
            return True
        count += 1
        lose = count <= 80 and count % 4 == 0
        lost += lose
        return not lose

    simulation.filter = lose_every_fourth
    start = simulation.now
    a.send(conn, bytes(96 << 10))
    assert simulation.run(60, lambda: len(b.received[accepted]) == (512 + 96) << 10)
    assert (simulation.now - start) / ROUND_TRIP < 3
    assert (lost, count) == (20, 100)


@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_reordering_is_not_taken_for_loss(loss: float) -> None:
    """Datagrams that overtake one another by a fifth of a round trip cost little, on the average of eight seeds."""
    taken = []
    for seed in range(8):
        simulation, a, b = far(seed, jitter=0.02, loss=loss)
        taken.append(transfer(simulation, a, b, 2 << 20, limit=100))
    assert sum(taken) / len(taken) < 120


def test_one_percent_of_loss_leaves_a_usable_rate() -> None:
    """2 MiB with 1 % of loss each way, on the average of eight seeds and at worst."""
    taken = []
    for seed in range(8):
        simulation, a, b = far(seed, loss=0.01)
        taken.append(transfer(simulation, a, b, 2 << 20, limit=100))
    assert sum(taken) / len(taken) < 170
    assert max(taken) < 230
