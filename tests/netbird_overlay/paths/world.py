"""Two links in virtual time, with a signal server, relay and direct network that lose and delay what chance decides."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.paths.effects import (
    AddRemoteCandidate,
    CloseRelay,
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

REKEY = 120.0
CONSENT = 6.0
"""Seconds after which an agent reports a pair as lost whose other end is silent."""
NO_PAIR = 12.0


@dataclass
class Agent:
    """A model of an ICE agent: it connects to the agent that was made for it, once either end knows a candidate."""

    start: StartIce
    candidates: int = 0
    selected: bool = False


@dataclass
class Side:
    name: str
    keys: tuple[bytes, bytes]
    local: LocalSide
    link: PeerLink
    open_relays: set[str] = field(default_factory=set)
    agent: Agent | None = None
    session: int = 0  # the handshake whose keys this end has; 0 for none
    changes: list[tuple[float, str]] = field(default_factory=list)
    agents: int = 0
    messages: int = 0


class World:
    """Both ends and all that is between them. `loss` and `direct` may be changed at any time."""

    def __init__(self, seed: int, keys: tuple[bytes, bytes], *, ice: tuple[bool, bool] = (True, True)) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.loss = 0.0
        self.jitter = 0.05
        self.direct = True
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self.sides: list[Side] = []
        self._handshakes = itertools.count(1)
        for index, (name, relay) in enumerate((("a", "rel://home-a"), ("b", "rel://home-b"))):
            local = LocalSide("0.60.0", 51820, signal=True, relays=True, relay_address=relay, ice=ice[index])
            pair = (keys[index], keys[1 - index])
            self.sides.append(Side(name, pair, local, self._link(pair, local)))
        self.later(REKEY, self._renew)

    def _link(self, keys: tuple[bytes, bytes], local: LocalSide) -> PeerLink:
        return PeerLink(*keys, local, self.now, draw=self.random.randbytes, pick=self.random.uniform)

    def other(self, side: Side) -> Side:
        return self.sides[1 - self.sides.index(side)]

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + seconds, next(self._order), act))

    def delay(self) -> float:
        return 0.01 + self.random.uniform(0, self.jitter)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for side in self.sides:
                self._perform(side)
            at = min([side.link.deadline for side in self.sides] + [self._due[0][0] if self._due else end])
            if at > end:
                break
            self.now = max(self.now, at)
            while self._due and self._due[0][0] <= self.now:
                heapq.heappop(self._due)[2]()
            for side in self.sides:
                if side.link.deadline <= self.now:
                    side.link.advance(self.now)
        self.now = end

    # Faults

    def restart(self, side: Side) -> None:
        """The process of one end starts again with the same key: all of its state is gone."""
        self._stop_agent(side)
        for server in list(side.open_relays):
            side.open_relays.discard(server)
        side.session = 0
        side.link = self._link(side.keys, side.local)

    def set_relay(self, side: Side, *, up: bool) -> None:
        """One end loses its relay connection, and with it its home relay, or gets it back."""
        address = f"rel://home-{side.name}" if up else ""
        if side.local.relay_address == address:
            return
        side.local = replace(side.local, relay_address=address)
        if not up:
            for server in list(side.open_relays):
                side.link.relay_lost(server, self.now)
                self.other(side).link.relay_lost(server, self.now)
        side.link.local_changed(side.local, self.now)

    def set_signal(self, side: Side, *, up: bool) -> None:
        side.local = replace(side.local, signal=up)
        side.link.local_changed(side.local, self.now)

    def set_direct(self, *, up: bool) -> None:
        self.direct = up
        if not up:
            for side in self.sides:
                if side.agent is not None and side.agent.selected:
                    self._lose_later(side, side.agent, CONSENT)

    # What links ask for

    def _perform(self, side: Side) -> None:
        while effects := side.link.take():
            for effect in effects:
                self._do(side, effect)

    def _do(self, side: Side, effect: object) -> None:
        other = self.other(side)
        match effect:
            case SendMessage(message):
                side.messages += 1
                if side.local.signal and self.random.random() >= self.loss:
                    self.later(
                        self.delay(), lambda: other.link.receive(message, self.now) if other.local.signal else None
                    )
            case OpenRelay(server):
                side.open_relays.add(server)
                self._meet(server)
            case CloseRelay(server):
                side.open_relays.discard(server)
            case StartIce():
                side.agents += 1
                side.agent = agent = Agent(effect)
                self._gather(side, agent)
                self.later(NO_PAIR, lambda: self._lose(side, agent) if not agent.selected else None)
            case StopIce():
                self._stop_agent(side)
            case AddRemoteCandidate():
                assert side.agent is not None
                assert side.agent.start.generation == effect.generation
                side.agent.candidates += 1
                self._connect()
            case Pin(path):
                side.changes.append((self.now, "relay" if isinstance(path, RelayPath) else "direct"))
            case Unpin():
                side.changes.append((self.now, "none"))
            case ResetSession():
                side.session = 0
            case StartHandshake():
                self._shake_hands(side)

    def _meet(self, server: str) -> None:
        """Report both ends to each other where both are subscribed and connected. A relay repeats no report."""
        if all(server in side.open_relays and side.local.relay_address for side in self.sides):
            for side in self.sides:
                self.later(self.delay(), lambda side=side: self._online(side, server))  # type: ignore[misc]

    def _online(self, side: Side, server: str) -> None:
        if server in side.open_relays and all(each.local.relay_address for each in self.sides):
            side.link.relay_ready(server, self.now)

    def _gather(self, side: Side, agent: Agent) -> None:
        generation = agent.start.generation
        line = f"1 1 udp 1 10.0.0.{self.sides.index(side)} 1 typ host ufrag {agent.start.local.ufrag}"
        self.later(self.delay(), lambda: side.link.local_candidate(generation, line, self.now))

    def _stop_agent(self, side: Side) -> None:
        agent, side.agent = side.agent, None
        other = self.other(side)
        if agent is not None and agent.selected and other.agent is not None and other.agent.selected:
            self._lose_later(other, other.agent, CONSENT)

    def _connect(self) -> None:
        a, b = (side.agent for side in self.sides)
        if not self.direct or a is None or b is None or not (a.candidates or b.candidates):
            return
        if a.start.local != b.start.remote or b.start.local != a.start.remote:
            return
        for side, agent in zip(self.sides, (a, b), strict=True):
            self.later(2 * self.delay(), lambda side=side, agent=agent: self._select(side, agent))  # type: ignore[misc]

    def _select(self, side: Side, agent: Agent) -> None:
        if side.agent is agent and self.other(side).agent is not None and self.direct and not agent.selected:
            agent.selected = True
            endpoint = Endpoint("10.0.0.1", 1)
            side.link.ice_selected(agent.start.generation, endpoint, self.now)

    def _lose_later(self, side: Side, agent: Agent, seconds: float) -> None:
        def check() -> None:
            other = self.other(side).agent
            alive = other is not None and other.start.local == agent.start.remote and self.direct
            if alive:
                assert other is not None
                self._connect()  # its successor answers the checks of this agent
            else:
                self._lose(side, agent)

        self.later(seconds, check)

    def _lose(self, side: Side, agent: Agent) -> None:
        if side.agent is agent:
            side.link.ice_lost(agent.start.generation, self.now)

    # WireGuard

    def _carries(self, side: Side) -> bool:
        """True if a datagram of this end reaches the other, and an answer comes back by the other's path."""
        paths = [each.link.path for each in self.sides]
        if None in paths:
            return False
        for path in paths:
            if isinstance(path, RelayPath):
                if not all(path.server in each.open_relays and each.local.relay_address for each in self.sides):
                    return False
            elif not self.direct:
                return False
        return True

    def _shake_hands(self, side: Side, tries: int = 4) -> None:
        """WireGuard repeats an initiation each 5 s."""
        if self._carries(side):
            self.later(self.delay(), self._agree)
        elif tries and side.link.path is not None:
            self.later(5, lambda: self._shake_hands(side, tries - 1))

    def _agree(self) -> None:
        number = next(self._handshakes)
        for side in self.sides:
            side.session = number
            side.link.handshaken(self.now)

    def _renew(self) -> None:
        if self._carries(self.sides[0]) and self.sides[0].session == self.sides[1].session != 0:
            self._agree()
        self.later(REKEY, self._renew)
