"""Whole tunnels in virtual time: engine, link and ICE agents over NATs, with a signal server and a relay in between.

Only the shells are missing that put these parts on an event loop.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Accepted, Closed, Connected, ConnectFailed, Data, Engine, Event, Handshake, Writable
from netbird_overlay.ice.agent import Selected
from netbird_overlay.ice.candidates import Candidate, priority
from netbird_overlay.paths.effects import (
    AddRemoteCandidate,
    CloseRelay,
    Effect,
    LocalSide,
    OpenRelay,
    Pin,
    RelayPath,
    ResetSession,
    SendMessage,
    StartHandshake,
    StartIce,
    StopIce,
    Unpin,
)
from netbird_overlay.paths.link import PeerLink
from netbird_overlay.paths.sessions import IceSessions
from netbird_overlay.signal.messages import Message
from netbird_overlay.simulation import ANYONE
from tests.netbird_overlay.nat import Site, World

RELAY = "rel://198.51.100.9:8080"
CARRIER = 1
PORT = 80


class Tunnel:
    """A machine with one peer: what `Paths` and the driver do, without their loop.

    Attributes:
        paths: each path of the link with the time at which it began; None for none.
        received: the data of each connection, `events` all else that the engine reported.
        signal_delay, relay_delay: seconds on the way of messages, and of datagrams by relay, to the other machine.
    """

    signal_delay = 0.05
    relay_delay = 0.04

    def __init__(self, world: World, site: Site, endpoint: Endpoint, address: str) -> None:
        self.world, self.endpoint, self.address = world, endpoint, address
        random = world.random
        self.engine = Engine(random.randbytes(32), seed=random.randbytes(16))
        self.engine.advance(world.now)
        self.engine.set_addresses([address])
        self.engine.set_inbound(ANYONE)
        self.sessions = IceSessions(
            send=self._send,
            random=random.randbytes,
            gather=self._gather,
            on_candidate=lambda _key, generation, line: self._link_does(
                lambda link: link.local_candidate(generation, line, world.now)
            ),
            on_selected=self._on_selected,
            on_lost=lambda _key, generation: self._link_does(lambda link: link.ice_lost(generation, world.now)),
        )
        self.other: Tunnel | None = None
        self.link: PeerLink | None = None
        self.local = LocalSide("0.60.0", endpoint.port, signal=True, relays=True, relay_address=RELAY)
        self.paths: list[tuple[float, object]] = []
        self.events: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.progress: list[tuple[float, int]] = []
        self.relay_opened = False
        self._unsent: dict[int, deque[bytes]] = {}
        self._busy = False
        self._outgoing: list[tuple[bytes, Endpoint]] = []
        self._inbox: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        site.hosts[endpoint] = self

    def meet(self, other: Tunnel, stuns: Sequence[Endpoint]) -> None:
        """Make the other machine the peer of this one."""
        self.other = other
        self.sessions.use_servers(stuns)
        self.engine.set_peer(other.engine.public_key, [other.address])
        self.link = PeerLink(
            self.engine.public_key,
            other.engine.public_key,
            self.local,
            self.world.now,
            draw=self.world.random.randbytes,
            pick=self.world.random.uniform,
        )
        self._link_does(lambda link: None)

    # The link ---------------------------------------------------------------------------------------------------------

    def _link_does(self, action: Callable[[PeerLink], None]) -> None:
        assert self.link is not None
        action(self.link)
        if self._busy:
            return
        self._busy = True
        while effects := self.link.take():
            for effect in effects:
                self._perform(effect)
        self._busy = False
        if not self.paths or self.paths[-1][1] != self.link.path:
            self.paths.append((self.world.now, self.link.path))

    def _perform(self, effect: Effect) -> None:
        assert self.other is not None
        key, now = self.other.engine.public_key, self.world.now
        match effect:
            case SendMessage(message) if self.local.signal:
                self.other.post(self.signal_delay, lambda other=self.other: other.hear(message))
            case OpenRelay():
                self.relay_opened = True
                self.post(self.relay_delay, self._relay_ready)
                self.other.post(self.relay_delay, self.other._relay_ready)
            case CloseRelay():
                self.relay_opened = False
            case StartIce():
                self.sessions.start(key, effect, now)
            case StopIce(generation):
                self.sessions.stop(key, generation)
            case AddRemoteCandidate(generation, line):
                self.sessions.add_remote(key, generation, line, now)
            case Pin(RelayPath()):
                self.engine.pin(key, CARRIER)
            case Pin(path):
                assert isinstance(path, Endpoint)
                self.engine.pin(key, path)
            case Unpin():
                self.engine.unpin(key)
            case ResetSession():
                self.engine.reset_session(key)
            case StartHandshake():
                self.engine.handshake(key)

    # Faults -----------------------------------------------------------------------------------------------------------

    def set_relay(self, *, up: bool) -> None:
        """Lose the connection to the relay, or get it back."""
        if bool(self.local.relay_address) is up:
            return
        self.local = replace(self.local, relay_address=RELAY if up else "")
        if not up and self.relay_opened and self.other is not None:
            self._link_does(lambda link: link.relay_lost(RELAY, self.world.now))
            self.other.post(self.relay_delay, self.other._relay_lost)
        self._link_does(lambda link: link.local_changed(self.local, self.world.now))

    def set_signal(self, *, up: bool) -> None:
        """Lose the connection to the signal server, or get it back."""
        if self.local.signal is not up:
            self.local = replace(self.local, signal=up)
            self._link_does(lambda link: link.local_changed(self.local, self.world.now))

    def _relay_lost(self) -> None:
        if self.relay_opened:
            self._link_does(lambda link: link.relay_lost(RELAY, self.world.now))

    def _relay_ready(self) -> None:
        if self.relay_opened and self.other is not None and self.other.relay_opened:
            self._link_does(lambda link: link.relay_ready(RELAY, self.world.now))

    def hear(self, message: Message) -> None:
        if self.local.signal:
            self._link_does(lambda link: link.receive(message, self.world.now))

    def _on_selected(self, _key: bytes, generation: int, event: Selected) -> None:
        self._link_does(lambda link: link.ice_selected(generation, event.endpoint, self.world.now))

    def _gather(self, ufrag: str, new_id: Callable[[], str]) -> Sequence[Candidate]:
        return [Candidate("host", self.endpoint, priority("host"), ufrag=ufrag, cid=new_id())]

    def _send(self, datagram: bytes, endpoint: Endpoint) -> None:
        self._outgoing.append((datagram, endpoint))

    # The machine ------------------------------------------------------------------------------------------------------

    def post(self, delay: float, act: Callable[[], None]) -> None:
        """Let something happen at this machine after a while."""
        heapq.heappush(self._inbox, (self.world.now + delay, next(self._order), act))

    def carry(self, datagram: bytes) -> None:
        """Take a datagram from the relay."""
        if self.relay_opened:
            self.engine.receive(datagram, CARRIER, self.world.now)
            self._turn()

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> None:
        self.engine.receive(datagram, source, now)
        self._turn()

    def advance(self, now: float) -> None:
        while self._inbox and self._inbox[0][0] <= now:
            heapq.heappop(self._inbox)[2]()
        self._link_does(lambda link: link.advance(now))
        self.sessions.advance(now)
        self._turn()

    def _turn(self) -> None:
        """Run turns of the engine until it has no work left."""
        while True:
            self.engine.advance(self.world.now)
            for datagram, source in self.engine.strays():
                self.sessions.receive(datagram, source, self.world.now)
            for event in self.engine.events():
                self._take(event)
            for _, datagram in self.engine.carried():
                other = self.other
                assert other is not None
                other.post(self.relay_delay, lambda other=other, datagram=datagram: other.carry(datagram))
            self._outgoing += self.engine.transmits()
            if not self.engine.pending:
                return

    def _take(self, event: Event) -> None:
        match event:
            case Data(conn, data):
                self.received.setdefault(conn, bytearray()).extend(data)
                self.progress.append((self.world.now, len(self.received[conn])))
                return
            case Writable(conn):
                self._write(conn)
            case Handshake():
                self._link_does(lambda link: link.handshaken(self.world.now))
        self.events.append(event)

    @property
    def deadline(self) -> float:
        due = self._inbox[0][0] if self._inbox else math.inf
        link = self.link.deadline if self.link is not None else math.inf
        return min(due, link, self.sessions.deadline, self.engine.deadline)

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        transmits, self._outgoing = self._outgoing, []
        return transmits

    # Connections ------------------------------------------------------------------------------------------------------

    def connect(self) -> int:
        assert self.other is not None
        conn = self.engine.connect(self.other.address, PORT, self.world.now)
        self._turn()
        return conn

    def write(self, conn: int, data: bytes) -> None:
        """Write all of the data, as fast as the other end takes it."""
        self._unsent.setdefault(conn, deque()).append(data)
        self._write(conn)
        self._turn()

    def _write(self, conn: int) -> None:
        waiting = self._unsent.get(conn, deque())
        while waiting:
            chunk = waiting.popleft()
            taken = self.engine.write(conn, chunk)
            if taken < len(chunk):
                waiting.appendleft(chunk[taken:])
                return

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if type(event) is kind]

    def ended(self) -> list[Event]:
        """Return the ends of connections."""
        return [event for event in self.events if isinstance(event, Closed | ConnectFailed)]


def connection(client: Tunnel, server: Tunnel) -> tuple[int, int]:
    """Establish a connection, and return its number at either end."""
    server.engine.listen(PORT)
    conn = client.connect()
    assert client.world.run(30, lambda: bool(client.of(Connected) and server.of(Accepted)))
    accepted = server.of(Accepted)[0]
    assert isinstance(accepted, Accepted)
    return conn, accepted.conn
