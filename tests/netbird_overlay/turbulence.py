"""Networks of engines that chance disturbs: paths change, break and come back, machines sleep, sessions are lost.

All follows from a seed. Every byte that is written is checked at the other end, and each wait of a connection measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Closed, Eof
from netbird_overlay.simulation import Crossing, Node, Simulation, Weather

TICK = 0.25
"""Seconds between two looks at the connections."""


@dataclass
class Stream:
    """One direction of a connection: its data, and how long it had to wait for the next byte."""

    source: Node
    target: Node
    source_conn: int
    target_conn: int
    data: bytearray = field(default_factory=bytearray)
    arrived: int = 0
    progress: float = 0.0
    longest_wait: float = 0.0

    @property
    def received(self) -> bytes:
        return bytes(self.target.received.get(self.target_conn, b""))

    @property
    def complete(self) -> bool:
        return self.arrived == len(self.data)

    def write(self, data: bytes, now: float) -> None:
        if self.complete:
            self.progress = now
        self.data += data
        self.source.send(self.source_conn, data)

    def look(self, now: float, calm_since: float) -> None:
        """Take account of what has arrived. Waits count from the last disturbance on."""
        size = len(self.target.received.get(self.target_conn, b""))
        if size > self.arrived or self.complete:
            self.arrived, self.progress = size, now
        self.longest_wait = max(self.longest_wait, now - max(self.progress, calm_since))


class Turbulence:
    """Engines that know each other, each pair with a direct path and a carrier.

    Args:
        neighbors: pairs of engines that are peers; by default all.

    Attributes:
        calm_since: time at which the last disturbance of a path or a machine ended.
    """

    def __init__(self, seed: int, count: int, *, neighbors: list[tuple[int, int]] | None = None) -> None:
        self.random = Random(seed)
        weather = Weather(
            delay=self.random.uniform(0.005, 0.08),
            jitter=self.random.choice((0.0, 0.005, 0.05)),
            loss=self.random.choice((0.0, 0.01, 0.05)),
            duplicate=self.random.choice((0.0, 0.02)),
        )
        self.simulation = Simulation(seed, weather)
        self.simulation.filter = self._passes
        self.nodes = [
            self.simulation.node([f"100.64.{number // 250}.{number % 250 + 1}"], handshakes_per_second=10_000)
            for number in range(count)
        ]
        self.pairs = [(self.nodes[a], self.nodes[b]) for a, b in (neighbors or itertools.combinations(range(count), 2))]
        self.carriers: dict[tuple[int, int], int] = {}
        numbers = itertools.count(1)
        for a, b in self.pairs:
            self.simulation.introduce(a, b, keepalive=25)
            self.carriers[id(a), id(b)], self.carriers[id(b), id(a)] = next(numbers), next(numbers)
            self.simulation.carrier(a, self.carriers[id(a), id(b)], b, self.carriers[id(b), id(a)])
        self.streams: list[Stream] = []
        self.calm_since = self.now
        self._udp_until: dict[int, float] = {}
        self._carriers_until: dict[int, float] = {}
        self._asleep: dict[int, tuple[float, Node]] = {}

    @property
    def now(self) -> float:
        return self.simulation.now

    def connect(self, client: Node, server: Node, port: int = 80) -> tuple[Stream, Stream]:
        """Open a connection, and return its two directions."""
        conn, accepted = self.simulation.connection(client, server, port)
        there = Stream(client, server, conn, accepted, progress=self.now)
        back = Stream(server, client, accepted, conn, progress=self.now)
        self.streams += (there, back)
        return there, back

    # Disturbances ----------------------------------------------------------------------------------------------------

    def _passes(self, crossing: Crossing) -> bool:
        until = self._udp_until if isinstance(crossing.destination, Endpoint) else self._carriers_until
        if isinstance(crossing.destination, Endpoint):
            ends = [crossing.source, crossing.destination]
            return not any(until.get(id(node), 0) > self.now for node in self.nodes if node.endpoint in ends)
        return crossing.node is None or until.get(id(crossing.node), 0) <= self.now

    def _disturbed(self, until: float) -> None:
        self.calm_since = max(self.calm_since, until)

    def cut_udp(self, node: Node, seconds: float) -> None:
        """Drop all datagrams from and to a node for a while."""
        self._udp_until[id(node)] = self.now + seconds
        self._disturbed(self.now + seconds)

    def cut_carriers(self, node: Node, seconds: float) -> None:
        """Drop all that carriers bring to a node for a while."""
        self._carriers_until[id(node)] = self.now + seconds
        self._disturbed(self.now + seconds)

    def sleep(self, node: Node, seconds: float) -> None:
        """Stop a machine for a while: it hears nothing, its timers stand still, and then its clock has jumped."""
        if node in self.simulation.nodes and len(self.simulation.nodes) > 1:
            self.simulation.nodes.remove(node)
            self._asleep[id(node)] = self.now + seconds, node
            self._disturbed(self.now + seconds)

    def pin(self, node: Node, other: Node, way: str) -> None:
        """Let a node send to another one by `carrier`, on the direct `udp` path, or where it was `heard` last."""
        engine, key = node.engine, other.engine.public_key
        match way:
            case "carrier":
                engine.pin(key, self.carriers[id(node), id(other)])
            case "udp":
                engine.pin(key, other.endpoint)
            case _:
                engine.pin(key, other.endpoint)
                engine.unpin(key)
                engine.set_peer(key, other.engine.addresses, endpoint=other.endpoint)
        self._wake(node)

    def reset_session(self, node: Node, other: Node) -> None:
        """Let a node forget its keys with another one, as after a restart of it."""
        node.engine.reset_session(other.engine.public_key)
        self._disturbed(self.now)
        self._wake(node)

    def disturb(self) -> None:
        """Let one thing happen that chance picks."""
        a, b = self.random.choice(self.pairs)
        if self.random.random() < 0.5:
            a, b = b, a
        seconds = self.random.uniform(0.5, 8)
        match self.random.choice(("pin", "pin", "pin", "udp", "carriers", "sleep", "reset")):
            case "pin":
                self.pin(a, b, self.random.choice(("carrier", "udp", "heard")))
            case "udp":
                self.cut_udp(a, seconds)
            case "carriers":
                self.cut_carriers(a, seconds)
            case "sleep":
                self.sleep(a, seconds)
            case "reset":
                self.reset_session(a, b)

    # Time ------------------------------------------------------------------------------------------------------------

    def _wake(self, node: Node) -> None:
        if node in self.simulation.nodes:
            self.simulation.touch(node)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, and look at all streams. True if `until` became true."""
        end = self.now + seconds
        while not until():
            if self.now >= end:
                return False
            self.simulation.run(min(TICK, end - self.now))
            for key, (at, node) in list(self._asleep.items()):
                if at <= self.now:
                    del self._asleep[key]
                    self.simulation.nodes.append(node)
                    self._wake(node)
            for stream in self.streams:
                stream.look(self.now, self.calm_since)
        return True

    def complete(self) -> bool:
        return all(stream.complete for stream in self.streams)

    def check(self) -> None:
        """Fail unless all that was written arrived, in order, on connections that stand."""
        for stream in self.streams:
            assert stream.received == stream.data, f"{len(stream.received)} of {len(stream.data)} bytes"
            assert not stream.source.of(Closed, stream.source_conn)
            assert not stream.source.of(Eof, stream.source_conn)

    def progress(self) -> list[str]:
        """Return what arrived of each stream that is not complete, for the message of a failure."""
        return [f"{stream.arrived} of {len(stream.data)}" for stream in self.streams if not stream.complete]

    @property
    def longest_wait(self) -> float:
        return max(stream.longest_wait for stream in self.streams)
