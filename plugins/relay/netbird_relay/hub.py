"""The peers that are connected to a relay, who is told about whom, and the way of a datagram. Sans-IO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from netbird_relay.limits import TAKEOVERS_A_SECOND, TAKEOVERS_AT_ONCE, Allowances, Limits
from netbird_wire.relay import PEERS_OFFLINE, PEERS_ONLINE, TRANSPORT_PREFIX


class Sink(Protocol):
    """The way to one peer. No method blocks or raises."""

    def forward(self, source: bytes, prefix: bytes, payload: bytes) -> None:
        """Send a Transport message, `prefix + payload`, or drop it and count that. `source` shares its queue fairly."""

    def control(self, message: bytes) -> None:
        """Send a message before datagrams that wait."""

    def notify(self, kind: int, ids: Sequence[bytes]) -> None:
        """Send a PEERS_ONLINE or PEERS_OFFLINE with these ids, in order with other notices. Those of one moment may
        share messages."""

    def end(self, reason: str) -> None:
        """Close the connection; the hub has forgotten the peer already."""


@dataclass(eq=False, slots=True)
class Peer:
    """One authenticated connection.

    Attributes:
        id: 36 bytes, as the peer stated it. A token names no peer, so any bearer of one may state any id.
        source: group of addresses from which the connection comes.
        prefix: begin of the Transport messages that others get from it.
        subscriptions: other peers by id; True while it waits for the peer to come online.
    """

    id: bytes
    sink: Sink
    source: str = ""
    prefix: bytes = field(init=False)
    subscriptions: dict[bytes, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prefix = TRANSPORT_PREFIX + self.id


class Hub:
    """All peers of one relay.

    Attributes:
        peers: the newest connection of each id.
        counters: what was relayed, dropped and refused, by reason.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.peers: dict[bytes, Peer] = {}
        self.counters: Counter[str] = Counter()
        self.queued_bytes = 0
        self._watchers: dict[bytes, set[Peer]] = {}
        self._subscriptions = 0
        self._takeovers = Allowances(TAKEOVERS_A_SECOND, TAKEOVERS_AT_ONCE)

    @property
    def subscriptions(self) -> int:
        """Number of subscriptions of all peers."""
        return self._subscriptions

    def enter(self, id_: bytes, sink: Sink, source: str, now: float) -> Peer | None:
        """Register a peer. An older connection with the same id ends; nobody is told, because the id stays online.

        None if the older one comes from another source, and this source has replaced too many of those.
        """
        older = self.peers.get(id_)
        if older is not None and older.source != source:
            if not self._takeovers.spend(source, now):
                return None
            self.counters["taken_over"] += 1
        peer = self.peers[id_] = Peer(id_, sink, source)
        if older is not None:
            self.counters["replaced"] += 1
            self._forget(older)
            older.sink.end("replaced by a newer connection of the same peer")
            return peer
        for watcher in self._watchers.get(id_, ()):
            if watcher.subscriptions[id_]:
                watcher.subscriptions[id_] = False
                watcher.sink.notify(PEERS_ONLINE, (id_,))
        return peer

    def leave(self, peer: Peer) -> None:
        """Remove a peer whose connection ended. Idempotent, also after it was replaced."""
        self._forget(peer)
        if self.peers.get(peer.id) is not peer:
            return
        del self.peers[peer.id]
        for watcher in self._watchers.get(peer.id, ()):
            watcher.sink.notify(PEERS_OFFLINE, (peer.id,))

    def subscribe(self, peer: Peer, ids: Iterable[bytes]) -> None:
        """Tell the peer now which of these are online, and once about each other when it comes online."""
        online: list[bytes] = []
        for id_ in ids:
            if id_ not in peer.subscriptions and not self._may_subscribe(peer):
                self.counters["subscriptions_refused"] += 1
                continue
            if id_ not in peer.subscriptions:
                self._watchers.setdefault(id_, set()).add(peer)
                self._subscriptions += 1
            is_online = id_ in self.peers
            peer.subscriptions[id_] = not is_online
            if is_online:
                online.append(id_)
        if online:
            peer.sink.notify(PEERS_ONLINE, online)

    def _may_subscribe(self, peer: Peer) -> bool:
        free = self.limits.subscriptions - self._subscriptions
        return len(peer.subscriptions) < min(self.limits.subscriptions_per_peer, free)

    def unsubscribe(self, peer: Peer, ids: Iterable[bytes]) -> None:
        for id_ in ids:
            if peer.subscriptions.pop(id_, None) is not None:
                self._unwatch(peer, id_)

    def _forget(self, peer: Peer) -> None:
        for id_ in peer.subscriptions:
            self._unwatch(peer, id_)
        peer.subscriptions.clear()

    def _unwatch(self, peer: Peer, id_: bytes) -> None:
        watchers = self._watchers[id_]
        watchers.discard(peer)
        self._subscriptions -= 1
        if not watchers:
            del self._watchers[id_]
