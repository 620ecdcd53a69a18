"""One peer in the table of the manager: its link, and the messages that it may send."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import PeerState
from netbird_overlay.paths.effects import RelayPath, TurnPath
from netbird_overlay.paths.link import PeerLink
from netbird_overlay.paths.servers import PathState, RemotePeer

MESSAGE_RATE: Final = 5.0
MESSAGE_BURST: Final = 100.0
"""Messages a second that a peer may send on average, and at once. More of them are dropped before they cost anything:
an agent sends two dozen for a path, and then none for hours."""


@dataclass(slots=True)
class Entry:
    """One peer.

    Attributes:
        busy: True while the link's effects are performed, so that an effect's own reports only queue further ones.
        allowance, counted_at: the messages that the peer may send at once, and when they were counted.
        types: types of the local and remote candidate of the ICE path.
    """

    key: bytes
    peer: RemotePeer
    link: PeerLink
    busy: bool = False
    allowance: float = MESSAGE_BURST
    counted_at: float = 0.0
    types: tuple[str, str] = ("", "")

    def admits(self, now: float) -> bool:
        """Count a message of the peer. False if it is one too many."""
        self.allowance = min(MESSAGE_BURST, self.allowance + (now - self.counted_at) * MESSAGE_RATE)
        self.counted_at = now
        if self.allowance < 1:
            return False
        self.allowance -= 1
        return True

    def state(self, peer: PeerState, now: float) -> PathState:
        """The state of the path, given the engine's view of the peer."""
        link, handshake = self.link, peer.last_handshake
        state = PathState(seconds=now - link.since, handshake=handshake, idle=link.idle)
        match link.path:
            case RelayPath(server):
                return replace(state, kind="relay", relay=server)
            case (Endpoint() as endpoint) | TurnPath(endpoint=endpoint):
                local, remote = self.types
                return replace(state, kind="ice", endpoint=endpoint, local_type=local, remote_type=remote)
            case None:
                if handshake is None or not isinstance(peer.endpoint, Endpoint):
                    return state
                return replace(state, kind="udp", endpoint=peer.endpoint)
