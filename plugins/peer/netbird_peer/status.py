"""The status of a member: its own node, and each peer with its path, last handshake and rates."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from netbird_overlay.engine import Endpoint, PeerState
from netbird_overlay.membership.joined import Joined
from netbird_overlay.paths.servers import PathState
from netbird_peer.home import Network
from netbird_wire.envelope import format_key

LEAST_INTERVAL: Final = 1.0
"""Shortest time in seconds that a rate is measured over; within it, `status` repeats the last one."""


class Rates:
    """Bytes a second from and to each peer, between calls of `status`."""

    def __init__(self) -> None:
        self._at = 0.0
        self._totals: dict[bytes, tuple[int, int]] = {}
        self._rates: dict[bytes, tuple[float, float]] = {}

    def measure(self, now: float, peers: dict[bytes, tuple[int, int]]) -> dict[bytes, tuple[float, float]]:
        """Take the totals of all peers; return their rates. Peers without an earlier total have none yet."""
        took = now - self._at
        if took >= LEAST_INTERVAL or not self._totals:
            self._rates = {
                key: ((total[0] - before[0]) / took, (total[1] - before[1]) / took)
                for key, total in peers.items()
                if (before := self._totals.get(key)) is not None and before[0] <= total[0] and before[1] <= total[1]
            }
            self._at, self._totals = now, peers
        return self._rates


def status_of(network: Network, member: Joined, rates: Rates) -> dict[str, Any]:
    """Return the status as a JSON object.

    `peers` are in order of their names: `path` is `none`, `udp` (plain WireGuard), `relay` or `ice` (a direct pair of
    addresses), for `since` seconds; `handshake` the seconds since the last one, or null; `received` and `sent` are
    bytes, `receiving` and `sending` bytes a second, or null before the second look.
    """
    node = member.node
    states = {state.public_key: state for state in node.driver.engine.peers()}
    measured = rates.measure(
        asyncio.get_running_loop().time(), {key: (state.rx, state.tx) for key, state in states.items()}
    )
    members = sorted(node.members.values(), key=lambda peer: (peer.name, peer.key))
    return {
        "management": network.management_url,
        "hostname": network.hostname,
        "public_key": format_key(node.public_key),
        "addresses": list(node.addresses),
        "signal_connected": member.paths.signal_connected,
        "relay": member.paths.home_relay,
        "last_error": member.membership.last_error,
        "peers": [
            {
                "name": peer.name,
                "addresses": list(peer.addresses),
                "public_key": format_key(peer.key),
                **_path(member.paths.state(peer.key)),
                **_bytes_of(states.get(peer.key)),
                "receiving": measured.get(peer.key, (None, None))[0],
                "sending": measured.get(peer.key, (None, None))[1],
            }
            for peer in members
        ],
    }


def _path(state: PathState) -> dict[str, Any]:
    return {
        "path": state.kind,
        "endpoint": None if state.endpoint is None else _spelled(state.endpoint),
        "relay": state.relay,
        "candidates": [state.local_type, state.remote_type] if state.kind == "ice" else [],
        "since": state.seconds,
        "handshake": state.handshake,
        "idle": state.idle,
    }


def _spelled(endpoint: Endpoint) -> str:
    return f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"


def _bytes_of(state: PeerState | None) -> dict[str, int]:
    return {"received": 0, "sent": 0} if state is None else {"received": state.rx, "sent": state.tx}
