"""The values between a link and its manager: the state of our own side, and the effects that a link asks for."""

from __future__ import annotations

from dataclasses import dataclass

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.members import IceCredentials
from netbird_overlay.signal.messages import Message


@dataclass(frozen=True, slots=True)
class LocalSide:
    """The state of our own side that all links share.

    Attributes:
        version: our version, as told to peers.
        listen_port: the tunnel's UDP port.
        signal: True while the signal server delivers to us.
        relays: True if relays are configured.
        relay_address: the instance URL of our home relay; "" while we are connected to none.
        relay_ip: the address at which we reach that relay, 4 or 16 bytes, or b"".
        ice: False if paths may only lead through relays.
    """

    version: str
    listen_port: int
    signal: bool = False
    relays: bool = False
    relay_address: str = ""
    relay_ip: bytes = b""
    ice: bool = True

    @property
    def ready(self) -> bool:
        """True if an offer that leaves now can name everything that we have."""
        return self.signal and (bool(self.relay_address) or not self.relays)


@dataclass(frozen=True, slots=True)
class RelayPath:
    """A path through the relay with this instance URL."""

    server: str


@dataclass(frozen=True, slots=True)
class TurnPath:
    """A path from our relayed address `via`, at a TURN server, to the peer's endpoint."""

    endpoint: Endpoint
    via: Endpoint


Path = Endpoint | RelayPath | TurnPath


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send a message to the peer through the signal server."""

    message: Message


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Subscribe to the peer at a relay; `relay_online` follows when the peer is there."""

    server: str
    server_ip: bytes = b""


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """End the subscription at a relay."""

    server: str


@dataclass(frozen=True, slots=True)
class StartIce:
    """Make an ICE agent and gather candidates for it. `generation` names the agent in all later calls.

    Attributes:
        relayed: also use TURN servers, because the two sides have no relay in common.
    """

    generation: int
    local: IceCredentials
    remote: IceCredentials
    controlling: bool
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class StopIce:
    generation: int


@dataclass(frozen=True, slots=True)
class AddRemoteCandidate:
    """Give a candidate's line of the peer to the agent."""

    generation: int
    line: str


@dataclass(frozen=True, slots=True)
class Pin:
    """Send the peer's datagrams by this path from now on. Sessions and connections continue."""

    path: Path


@dataclass(frozen=True, slots=True)
class Unpin:
    """Forget the path. Sessions and connections continue, and wait for another path."""


@dataclass(frozen=True, slots=True)
class ResetSession:
    """Drop the WireGuard sessions with the peer, because it lost its own."""


@dataclass(frozen=True, slots=True)
class StartHandshake:
    """Start a WireGuard handshake by the current path."""


Effect = (
    SendMessage
    | OpenRelay
    | CloseRelay
    | StartIce
    | StopIce
    | AddRemoteCandidate
    | Pin
    | Unpin
    | ResetSession
    | StartHandshake
)
