"""Simulated networks of engines for tests: virtual time, with loss, delay and reordering from a seed.

Time advances only in `Simulation.run`, from one event to the next, so that hours of keepalives and rekeys pass in
milliseconds. Runs with the same seed give the same packets in the same order (keys differ).
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from netbird_overlay.engine import (
    Accepted,
    BufferBudget,
    Closed,
    Connected,
    ConnectFailed,
    Data,
    Endpoint,
    Engine,
    Event,
    Path,
    Rule,
    Writable,
)

ANYONE: Sequence[Rule] = (
    ("0.0.0.0/0", 6, 1, 65535),
    ("::/0", 6, 1, 65535),
    ("0.0.0.0/0", 1, 0, 0),
    ("::/0", 1, 0, 0),
)
"""Inbound rules that admit all TCP and echo requests."""


DATE = 1.8e9
"""The simulations' date at time 0, in seconds since 1970."""


@dataclass
class Weather:
    """The outside network's treatment of datagrams: times in seconds, `loss` and `duplicate` as probabilities."""

    delay: float = 0.01
    jitter: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0


@dataclass(frozen=True)
class Crossing:
    """A datagram in the outside network. A test may forge its source."""

    at: float
    datagram: bytes
    source: Path
    destination: Path
    node: "Node | None" = None
    """The receiver at the end of a carrier, whose number there is `source`."""


class Node:
    """One engine with its outside address. `log` records all events but `Data`, `received` the data by connection."""

    def __init__(self, simulation: "Simulation", engine: Engine, endpoint: Endpoint) -> None:
        self.engine = engine
        self.endpoint = endpoint
        self.log: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.on_event: Callable[[Event], None] | None = None
        self._simulation = simulation
        self._unsent: dict[int, deque[bytes]] = {}

    @property
    def address(self) -> str:
        """The first overlay address."""
        return self.engine.addresses[0]

    def connect(self, address: str, port: int) -> int:
        conn = self.engine.connect(address, port, self._simulation.now)
        self._simulation.touch(self)
        return conn

    def send(self, conn: int, data: bytes) -> None:
        """Write all of `data`, as fast as the other end accepts it."""
        self._unsent.setdefault(conn, deque()).append(data)
        self._write(conn)
        self._simulation.touch(self)

    def unsent(self, conn: int) -> int:
        return sum(map(len, self._unsent.get(conn, ())))

    def of(self, kind: type[Event], conn: int | None = None) -> list[Event]:
        """Return the events of one kind so far, in order."""
        return [
            event for event in self.log if type(event) is kind and (conn is None or getattr(event, "conn", 0) == conn)
        ]

    def end(self, conn: int) -> str | None:
        """Return the reason of the connection's end, or None while it is open."""
        for event in self.log:
            if isinstance(event, Closed | ConnectFailed) and event.conn == conn:
                return event.reason
        return None

    def flush(self) -> None:
        """Run turns of the engine until it has no work left."""
        engine = self.engine
        for _ in range(1000):
            engine.advance(self._simulation.now)
            for event in engine.events():
                self._take(event)
            for datagram, destination in engine.transmits():
                self._simulation.carry(datagram, self.endpoint, destination)
            for carrier, datagram in engine.carried():
                self._simulation.carry_along(self, carrier, datagram)
            if not engine.pending:
                return
        raise AssertionError("the engine never comes to rest")

    def _take(self, event: Event) -> None:
        if isinstance(event, Data):
            self.received.setdefault(event.conn, bytearray()).extend(event.data)
        else:
            self.log.append(event)
        if isinstance(event, Writable):
            self._write(event.conn)
        elif isinstance(event, Closed | ConnectFailed):
            self._unsent.pop(event.conn, None)
        if self.on_event is not None:
            self.on_event(event)

    def _write(self, conn: int) -> None:
        waiting = self._unsent.get(conn, deque())
        while waiting:
            chunk = waiting.popleft()
            taken = self.engine.write(conn, chunk)
            if taken < len(chunk):
                waiting.appendleft(chunk[taken:])
                return


@dataclass
class Simulation:
    """A network of nodes. `filter`, if set, returns True for each datagram that may pass."""

    seed: int = 0
    weather: Weather = field(default_factory=Weather)
    now: float = 1000.0
    filter: Callable[[Crossing], bool] | None = None
    crossings: list[Crossing] = field(default_factory=list)
    keep_crossings: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311
        self.nodes: list[Node] = []
        self._carriers: dict[tuple[int, int], tuple[Node, int]] = {}
        self._due: list[tuple[float, int, Crossing]] = []
        self._order = itertools.count()

    def node(
        self,
        addresses: Sequence[str],
        *,
        endpoint: Endpoint | None = None,
        private_key: bytes | None = None,
        inbound: Sequence[Rule] = ANYONE,
        receive_buffer: int = 65536,
        send_buffer: int = 65536,
        mtu: int = 1280,
        max_connections: int = 4096,
        reserved_for_dials: int = 0,
        fair: bool = False,
        max_buffer_bytes: int = 256 << 20,
        budget: BufferBudget | None = None,
        handshakes_per_second: int = 100,
    ) -> Node:
        """Add an engine with these overlay addresses. Without `endpoint`, it gets an outside address of its own."""
        engine = Engine(
            self.random.randbytes(32) if private_key is None else private_key,
            mtu=mtu,
            receive_buffer=receive_buffer,
            send_buffer=send_buffer,
            max_connections=max_connections,
            reserved_for_dials=reserved_for_dials,
            fair=fair,
            max_buffer_bytes=max_buffer_bytes,
            budget=budget,
            handshakes_per_second=handshakes_per_second,
            seed=self.random.randbytes(16),
            date=DATE + self.now,
        )
        engine.advance(self.now)
        engine.set_addresses(addresses)
        engine.set_inbound(inbound)
        node = Node(self, engine, endpoint or Endpoint("192.0.2.1", 51820 + len(self.nodes)))
        self.nodes.append(node)
        return node

    def introduce(self, a: Node, b: Node, *, keepalive: int | None = None, preshared_key: bytes | None = None) -> None:
        """Make two nodes each other's peers, with their endpoints and overlay addresses."""
        for node, other in ((a, b), (b, a)):
            node.engine.set_peer(
                other.engine.public_key,
                other.engine.addresses,
                endpoint=other.endpoint,
                keepalive=keepalive,
                preshared_key=preshared_key,
            )

    def pair(self) -> tuple[Node, Node]:
        """Add two nodes that are each other's peers: 100.64.0.1 and 100.64.0.2, fd00::1 and fd00::2."""
        a, b = self.node(["100.64.0.1", "fd00::1"]), self.node(["100.64.0.2", "fd00::2"])
        self.introduce(a, b)
        return a, b

    def connection(self, client: Node, server: Node, port: int = 80, *, address: str | None = None) -> tuple[int, int]:
        """Establish a connection, and return its number on either end. Makes `server` listen; its rules apply."""
        server.engine.listen(port)
        before = {event.conn for event in server.log if isinstance(event, Accepted)}
        conn = client.connect(address or server.address, port)

        def accepted() -> list[int]:
            return [e.conn for e in server.log if isinstance(e, Accepted) and e.conn not in before]

        if not self.run(60, lambda: bool(accepted()) and bool(client.of(Connected, conn))):
            raise AssertionError(f"no connection: {client.end(conn)}, {server.engine.counters()}")
        return conn, accepted()[0]

    def touch(self, node: Node) -> None:
        """Flush a node, after a call on its engine."""
        node.flush()

    def carrier(self, a: Node, a_number: int, b: Node, b_number: int) -> None:
        """Join two nodes by a carrier, with the number that it has at either end."""
        self._carriers[id(a), a_number] = (b, b_number)
        self._carriers[id(b), b_number] = (a, a_number)

    def carry_along(self, node: Node, carrier: int, datagram: bytes) -> None:
        """Carry a datagram of `node`; it is lost without a carrier of this number."""
        receiver, number = self._carriers.get((id(node), carrier), (None, 0))
        if receiver is not None:
            self._carry(Crossing(self.now, datagram, number, carrier, receiver))

    def carry(self, datagram: bytes, source: Endpoint, destination: Endpoint) -> None:
        self._carry(Crossing(self.now, datagram, source, destination))

    def _carry(self, crossing: Crossing) -> None:
        if self.keep_crossings:
            self.crossings.append(crossing)
        weather = self.weather
        if self.filter is not None and not self.filter(crossing):
            return
        if self.random.random() < weather.loss:
            return
        for _ in range(2 if self.random.random() < weather.duplicate else 1):
            at = self.now + weather.delay + self.random.uniform(0, weather.jitter)
            heapq.heappush(self._due, (at, next(self._order), crossing))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let up to this many seconds pass. True if `until` became true in time, or without `until`."""
        end = self.now + seconds
        for node in self.nodes:
            node.flush()
        while until is None or not until():
            at = min((self._due[0][0] if self._due else end, *(node.engine.deadline for node in self.nodes), end))
            self.now = max(self.now, at)
            woken = {id(node): node for node in self.nodes if node.engine.deadline <= self.now}
            while self._due and self._due[0][0] <= self.now:
                _, _, crossing = heapq.heappop(self._due)
                for node in self.nodes:
                    if node is crossing.node or node.endpoint == crossing.destination:
                        node.engine.receive(crossing.datagram, crossing.source, self.now)
                        woken[id(node)] = node
            for node in woken.values():
                node.flush()
            if self.now >= end:
                return until is None or until()
        return True

    def settle(self, seconds: float = 5.0) -> None:
        """Let some time pass, so that pending exchanges complete."""
        self.run(seconds)
