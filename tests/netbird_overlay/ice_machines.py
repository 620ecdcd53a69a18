"""Machines for `nat.World`: STUN servers, and members of an ICE session that trickle their candidates."""

from __future__ import annotations

import heapq
import itertools
import math

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.agent import Event, Failed, IceAgent, Lost, Selected
from netbird_overlay.ice.candidates import Candidate, letters, priority, server_reflexive
from netbird_overlay.members import IceCredentials
from netbird_overlay.stun import BadStun, Kind, Mapped, Message, StunClient, encode, parse
from tests.netbird_overlay.nat import Crossing, Site, World

STUN_PORT = 3478


class StunServer:
    """Answers each query with its source."""

    def __init__(self, world: World, host: str) -> None:
        self.endpoint = Endpoint(host, STUN_PORT)
        self.deadline = math.inf
        self._transmits: list[tuple[bytes, Endpoint]] = []
        world.internet.hosts[self.endpoint] = self

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> None:
        try:
            message = parse(datagram)
        except BadStun:
            return
        self._transmits.append((encode(Message(Kind.SUCCESS, message.transaction, mapped=source)), source))

    def advance(self, now: float) -> None:
        pass

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        transmits, self._transmits = self._transmits, []
        return transmits


class Machine:
    """One socket with a STUN client and the agent of one session.

    Attributes:
        log: the agent's events with their times.
        signalled: candidates on their way from the other machine, by arrival.
    """

    def __init__(
        self, world: World, site: Site, endpoint: Endpoint, *, controlling: bool, servers: tuple[Endpoint, ...] = ()
    ) -> None:
        self.world, self.endpoint, self.controlling = world, endpoint, controlling
        self.credentials = IceCredentials(letters(16, world.random.randbytes), letters(32, world.random.randbytes))
        self.stun = StunClient(world.random.randbytes)
        self.servers = servers
        self.host = Candidate("host", endpoint, priority("host"), cid=letters(32, world.random.randbytes))
        self.agent: IceAgent | None = None
        self.other: Machine | None = None
        self.signal_delay = 0.05
        self.log: list[tuple[float, Event]] = []
        self.signalled: list[tuple[float, int, Candidate]] = []
        self._order = itertools.count()
        site.hosts[endpoint] = self

    def start(self, other: Machine, *, host_candidates: bool = True, tie_breaker: int | None = None) -> None:
        """Begin a session with credentials that both sides exchanged just now, and send the candidates."""
        now = self.world.now
        self.other = other
        self.agent = IceAgent(
            local=self.credentials,
            remote=other.credentials,
            controlling=self.controlling,
            tie_breaker=self.world.random.getrandbits(64) if tie_breaker is None else tie_breaker,
            random=self.world.random.randbytes,
            now=now,
        )
        self.agent.add_local(self.host)
        if host_candidates:
            self.signal(self.host)
        self.stun.query(self.servers, now)

    def signal(self, candidate: Candidate, delay: float | None = None) -> None:
        """Send a candidate of this machine to the other one."""
        assert self.other is not None
        self.other.hear(candidate, self.signal_delay if delay is None else delay)

    def hear(self, candidate: Candidate, delay: float) -> None:
        heapq.heappush(self.signalled, (self.world.now + delay, next(self._order), candidate))

    def outcome(self) -> Event | None:
        return self.log[-1][1] if self.log else None

    def receive(self, datagram: bytes, source: Endpoint, now: float) -> None:
        if not self.stun.receive(datagram, source, now) and self.agent is not None:
            self.agent.receive(datagram, source, now)
        self._take_events()

    def advance(self, now: float) -> None:
        self.stun.advance(now)
        if self.agent is not None:
            while self.signalled and self.signalled[0][0] <= now:
                self.agent.add_remote(heapq.heappop(self.signalled)[2], now)
            self.agent.advance(now)
        self._take_events()

    @property
    def deadline(self) -> float:
        if self.agent is None:
            return self.stun.deadline
        signalled = self.signalled[0][0] if self.signalled else math.inf
        return min(self.stun.deadline, self.agent.deadline, signalled)

    def transmits(self) -> list[tuple[bytes, Endpoint]]:
        return self.stun.transmits() + (self.agent.transmits() if self.agent is not None else [])

    def _take_events(self) -> None:
        for event in self.stun.events():
            if isinstance(event, Mapped) and self.agent is not None and event.endpoint != self.endpoint:
                candidate = server_reflexive(event.endpoint, self.endpoint)
                self.agent.add_local(candidate)
                self.signal(candidate)
        if self.agent is not None:
            self.log += ((self.world.now, each) for each in self.agent.events())


def decided(*machines: Machine) -> bool:
    return all(machine.log for machine in machines)


class Transcript:
    """Records the STUN messages of a world, each as `seconds sender kind`. Its `record` is the world's `cut`."""

    def __init__(self, world: World, **names: Endpoint) -> None:
        self.lines: list[str] = []
        self._names = {endpoint: name for name, endpoint in names.items()}
        self._began = world.now
        world.cut = self.record

    def record(self, crossing: Crossing) -> bool:
        message = parse(crossing.datagram)
        text = f"{crossing.at - self._began:.2f} {self._names[crossing.source]} "
        if message.kind is Kind.REQUEST:
            text += "check" + (" controlling" if message.controlling is not None else " controlled")
            text += " use" if message.use_candidate else ""
        else:
            text += "answer" if message.error is None else f"error {message.error}"
        self.lines.append(text)
        return False


__all__ = ["Failed", "Lost", "Machine", "Selected", "StunServer", "Transcript", "decided"]
