"""The values that a caller of `Paths` passes in and gets back: servers, peers and the state of a path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.signal.client import SignalTarget
from netbird_wire.relay_tokens import RelayToken

FIRST_LAZY_RELEASE: Final = (0, 45)
"""The first release of NetBird's agents that can be lazy; they exclude older peers from laziness, too."""


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A TURN server, `turn:host:port` with a transport where it names one, and our credentials there."""

    uri: str
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PathServers:
    """The servers that connect us to peers. A part that is None has not changed.

    Attributes:
        relays: URLs of relays, `rel://…` or `rels://…`; empty: relays are switched off and their paths close.
        relay_token: admits us to the relays; needed when a relay is connected, so that a later one replaces it in time.
        stuns: `stun:host:port`.
        turns: used for peers with which we have no relay in common.
    """

    signal: SignalTarget | None = None
    relays: tuple[str, ...] | None = None
    relay_token: RelayToken | None = None
    stuns: tuple[str, ...] | None = None
    turns: tuple[TurnServer, ...] | None = None


@dataclass(frozen=True, slots=True)
class RemotePeer:
    """A peer of the map, to which a path is kept.

    Attributes:
        agent_version: the version of its agent; empty for a peer that probably runs plain WireGuard.
        lazy: the peer may close its side while no data passes; a dial wakes it.
    """

    key: bytes
    agent_version: str = ""
    lazy: bool = False

    @property
    def may_sleep(self) -> bool:
        """True if the peer's agent knows how to close its side and to be woken."""
        return self.lazy and bool(self.agent_version) and _release(self.agent_version) >= FIRST_LAZY_RELEASE


PathKind = Literal["none", "udp", "relay", "ice"]


@dataclass(frozen=True, slots=True)
class PathState:
    """The path to a peer as it is now, for status displays.

    Attributes:
        kind: `udp` for a peer that plain WireGuard reached, and that roams; `ice` for a pair of addresses, which is
            direct unless one of its types is `relay`: that end is an address at a TURN server.
        endpoint: the peer's address outside, for `udp` and `ice`.
        relay: instance URL of the relay, for `relay`.
        seconds: time since the path became what it is.
        handshake: seconds since the last handshake; None without a session.
        local_type, remote_type: the types of the candidates of an `ice` path, such as `host` and `srflx`.
        idle: True while the peer sleeps.
    """

    kind: PathKind = "none"
    endpoint: Endpoint | None = None
    relay: str = ""
    seconds: float = 0.0
    handshake: float | None = None
    local_type: str = ""
    remote_type: str = ""
    idle: bool = False


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; a development version is newer than all releases."""
    numbers = version.removeprefix("v").split(".")[:2]
    if not all(number.isascii() and number.isdigit() and len(number) < 6 for number in numbers):
        return (1 << 16,)
    return tuple(int(number) for number in numbers)
