"""A link under test: its inputs in virtual time, its effects as a transcript."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.members import IceCredentials
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
from netbird_overlay.signal.messages import Answer, Negotiation, Offer, RemoteCandidate
from netbird_wire.envelope import parse_key

KEY_A = parse_key("6jgbXqHxh1Jz7VpgYBq+5xPR8iBM8UWLmzaIKSqInDc=")
KEY_B = parse_key("zTXbY9Jn5ByFD/N0J7r1RCx1Akm/Sw2BYj+sLKLn0Sk=")
"""The controller of the two: its text is greater."""
RELAY = "rel://10.99.0.1:8080"
OTHER_RELAY = "rel://10.99.0.2:8080"
READY = LocalSide("0.60.0", 51820, signal=True, relays=True, relay_address=RELAY, relay_ip=bytes((10, 99, 0, 1)))
REMOTE = IceCredentials("remoteufragremot", "remotepwd" * 3 + "remot")
HOST_LINE = f"1 1 udp 2130706431 10.99.0.2 51820 typ host ufrag {REMOTE.ufrag} cid abc"
PAIR = Endpoint("10.99.0.2", 51820)


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def counted_bytes() -> Callable[[int], bytes]:
    """Bytes that differ from draw to draw, and are the same in each run."""
    numbers = itertools.count(1)
    return lambda size: bytes([next(numbers) % 256]) * size


def negotiation(
    session: bytes = b"", *, relay: str = RELAY, credentials: IceCredentials | None = REMOTE, ip: bytes = b""
) -> Negotiation:
    """A peer's side of the negotiation. Without a session it has no ICE."""
    return Negotiation(
        credentials=credentials if session else None,
        listen_port=51820,
        version="0.77.1",
        relay_address=relay,
        relay_ip=ip,
        session_id=session,
    )


class Player:
    """One link, whose time passes in `pass_time` only.

    `play` and `pass_time` return what the link did, in short words, so that a test states the whole list.
    """

    def __init__(
        self,
        local: LocalSide = READY,
        *,
        controller: bool = True,
        lazy: bool = False,
        agent: bool = True,
        idle: bool = False,
        now: float = 1000.0,
    ) -> None:
        self.now = now
        own, remote = (KEY_B, KEY_A) if controller else (KEY_A, KEY_B)
        self.local = local
        self.link = PeerLink(
            own, remote, local, now, draw=counted_bytes(), pick=middle, lazy=lazy, agent=agent, idle=idle
        )

    def change(self, **changes: object) -> list[str]:
        self.local = replace(self.local, **changes)  # type: ignore[arg-type]
        self.link.local_changed(self.local, self.now)
        return self.effects()

    def offer(self, session: bytes = b"", **fields: object) -> list[str]:
        self.link.receive(Offer(negotiation(session, **fields)), self.now)  # type: ignore[arg-type]
        return self.effects()

    def answer(self, session: bytes = b"", **fields: object) -> list[str]:
        self.link.receive(Answer(negotiation(session, **fields)), self.now)  # type: ignore[arg-type]
        return self.effects()

    def offered(self, message: Negotiation) -> list[str]:
        self.link.receive(Offer(message), self.now)
        return self.effects()

    def candidate(self, line: str = HOST_LINE) -> list[str]:
        self.link.receive(RemoteCandidate(line), self.now)
        return self.effects()

    def own_candidate(self, line: str) -> list[str]:
        self.link.local_candidate(self.link.generation, line, self.now)
        return self.effects()

    def relay_ready(self, server: str = RELAY) -> list[str]:
        self.link.relay_ready(server, self.now)
        return self.effects()

    def relay_lost(self, server: str = RELAY) -> list[str]:
        self.link.relay_lost(server, self.now)
        return self.effects()

    def ice_selected(self, endpoint: object) -> list[str]:
        self.link.ice_selected(self.link.generation, endpoint, self.now)  # type: ignore[arg-type]
        return self.effects()

    def ice_lost(self) -> list[str]:
        self.link.ice_lost(self.link.generation, self.now)
        return self.effects()

    def handshaken(self) -> list[str]:
        self.link.handshaken(self.now)
        return self.effects()

    def start(self) -> list[str]:
        """Do the work that is due from the beginning."""
        self.link.advance(self.now)
        return self.effects()

    def pass_time(self, seconds: float) -> list[tuple[float, str]]:
        """Let time pass, and return each effect with the seconds after which it came."""
        begin, end = self.now, self.now + seconds
        seen: list[tuple[float, str]] = []
        while (due := self.link.deadline) <= end:
            self.now = max(self.now, due)
            self.link.advance(self.now)
            seen += [(round(self.now - begin, 2), word) for word in self.effects()]
        self.now = end
        return seen

    def effects(self) -> list[str]:
        return [word(effect) for effect in self.link.take()]


def word(effect: Effect) -> str:
    """An effect in short: sessions as the byte that they repeat, candidates by their address."""
    match effect:
        case SendMessage(Offer(negotiation) | Answer(negotiation) as message):
            session = f" {negotiation.session_id[0]}" if negotiation.session_id else " no ice"
            relay = f" {negotiation.relay_address}" if negotiation.relay_address else ""
            return f"{type(message).__name__.lower()}{session}{relay}"
        case SendMessage(RemoteCandidate(line)):
            return f"candidate {line}"
        case SendMessage(message):
            return type(message).__name__
        case StartIce(generation, _, remote, controlling):
            return f"ice {generation} {'controls' if controlling else 'follows'} {remote.ufrag[:6]}"
        case AddRemoteCandidate(generation, line):
            return f"ice {generation} learns {line.split()[4]}"
        case OpenRelay(server, ip):
            return f"open {server}" + (f" at {ip.hex()}" if ip else "")
        case CloseRelay(server):
            return f"close {server}"
        case StopIce(generation):
            return f"stop ice {generation}"
        case Pin(RelayPath(server)):
            return f"pin {server}"
        case Pin():
            return "pin direct"
        case Unpin():
            return "unpin"
        case ResetSession():
            return "reset session"
        case StartHandshake():
            return "handshake"


NO_ICE = replace(READY, ice=False)


def relayed(player: Player) -> Player:
    """Bring a link up over the relay, with a handshake."""
    player.start()
    player.offer(b"")
    player.relay_ready()
    player.handshaken()
    return player


def direct(player: Player, session: bytes = b"g1g1g") -> Player:
    """Bring a link up over the relay and then directly."""
    player.start()
    player.offer(session)
    player.relay_ready()
    player.handshaken()
    player.ice_selected(PAIR)
    return player
