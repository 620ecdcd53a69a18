"""Bytes in order and complete, whatever the network does to segments and acknowledgments, and no long silence."""

import random

import pytest

from netbird_overlay.simulation import Crossing, Node, Simulation, Weather

SILENCE = 6.0
"""Seconds within which waiting data arrives, unless its reader rests: a few retransmission timeouts in a row."""


class Direction:
    """One direction of a connection, whose reader rests from time to time."""

    def __init__(self, source: Node, target: Node, conn: int, accepted: int, data: bytes) -> None:
        self.source, self.target, self.conn, self.accepted = source, target, conn, accepted
        self.data = data
        self.arrived = 0
        self.since = 0.0
        self.longest = 0.0
        self.is_paused = False

    @property
    def is_complete(self) -> bool:
        return self.arrived == len(self.data)

    def rest(self, simulation: Simulation, is_paused: bool) -> None:
        self.is_paused = is_paused
        engine = self.target.engine
        (engine.pause_reading if is_paused else engine.resume_reading)(self.accepted)
        simulation.touch(self.target)

    def look(self, now: float) -> None:
        """Take account of what arrived, and of the time that nothing did."""
        size = len(self.target.received.get(self.accepted, b""))
        if size > self.arrived or self.is_paused or self.is_complete:
            self.arrived, self.since = size, now
        self.longest = max(self.longest, now - self.since)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_arrive_in_order_and_complete(seed: int) -> None:
    """Loss, bursts of it, reordering, duplicates and readers that rest, both ways at once."""
    chance = random.Random(seed)
    weather = Weather(
        delay=chance.uniform(0.005, 0.1),
        jitter=chance.choice((0.0, 0.002, 0.03)),
        loss=chance.choice((0.001, 0.01, 0.05)),
        duplicate=chance.choice((0.0, 0.02)),
    )
    simulation = Simulation(seed, weather)
    size = chance.choice((64 << 10, 1 << 20))
    a, b = (simulation.node([f"100.64.0.{n}"], receive_buffer=size, send_buffer=size) for n in (1, 2))
    simulation.introduce(a, b)
    conn, accepted = simulation.connection(a, b)
    there = Direction(a, b, conn, accepted, chance.randbytes(1 << 20))
    back = Direction(b, a, accepted, conn, chance.randbytes(1 << 20))
    burst_until = 0.0

    def passes(crossing: Crossing) -> bool:
        nonlocal burst_until
        if chance.random() < 0.001:
            burst_until = crossing.at + 0.003
        return crossing.at >= burst_until or chance.random() < 0.5

    simulation.filter = passes
    for direction in (there, back):
        direction.since = simulation.now
        direction.source.send(direction.conn, direction.data)
    end = simulation.now + 300
    while simulation.now < end and not (there.is_complete and back.is_complete):
        for direction in (there, back):
            if chance.random() < (0.3 if direction.is_paused else 0.02):
                direction.rest(simulation, not direction.is_paused)
        simulation.run(0.1)
        for direction in (there, back):
            direction.look(simulation.now)
    for direction in (there, back):
        assert bytes(direction.target.received[direction.accepted]) == direction.data
        assert direction.longest < SILENCE
