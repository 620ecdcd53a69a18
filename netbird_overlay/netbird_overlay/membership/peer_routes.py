"""Reads the routes of a network map, and chooses the routing peer of each.

Routes of one network, or of one list of domains, that differ in their peers are one group: each of its peers can carry
the traffic, and one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network

from netbird_wire.envelope import BadKey, parse_key
from netbird_wire.management_pb2 import Route

MAX_GROUPS = 8192
"""Maximum number of groups of routes; further ones are left out and counted as skipped."""
MAX_METRIC = 9999
UNKNOWN_LATENCY = 0.999
CHANGE_SCORE = 0.01
"""A routing peer is left for one whose score is higher by more than this, so that equals do not alternate."""
MAPPED = IPv6Network("::ffff:0:0/96")
EXIT_NETWORKS = frozenset(("0.0.0.0/0", "::/0"))


@dataclass(frozen=True, slots=True)
class RoutingPeer:
    """One peer of a group."""

    key: bytes
    metric: int


@dataclass(frozen=True, slots=True)
class RouteGroup:
    """A network, or domains, behind one or more routing peers.

    Attributes:
        name: the name that administrators gave it.
        network: a canonical prefix; "" for domains.
        domains: lower-case names without a final dot; `*.example.com` means every name below.
        keep: addresses of the domains stay routed after a later answer no longer has them.
    """

    name: str
    network: str = ""
    domains: tuple[str, ...] = ()
    keep: bool = False
    peers: tuple[RoutingPeer, ...] = ()

    @property
    def id(self) -> tuple[str, str, tuple[str, ...]]:
        return self.name, self.network, self.domains


@dataclass(frozen=True, slots=True)
class PeerRoutes:
    """A map's routes.

    Attributes:
        groups: groups that can be used.
        exits: names of the exit nodes, which are not used.
        skipped: number of routes that cannot be read or are above the limit.
    """

    groups: tuple[RouteGroup, ...] = ()
    exits: tuple[str, ...] = ()
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """A peer's condition as a carrier.

    Attributes:
        connected: a session and a path exist.
        idle: the peer sleeps until it is needed, and wakes at once.
        latency: of a round trip in seconds; None if unknown.
    """

    connected: bool = False
    idle: bool = False
    relayed: bool = False
    latency: float | None = None


def read_routes(routes: Iterable[Route], own_key: bytes) -> PeerRoutes:
    """Read the routes of a map. Groups in which we are a routing peer ourselves are left out.

    Exit nodes, which take all traffic, are named and left out: a proxy reaches named networks only.
    """
    peers: dict[tuple[str, str, tuple[str, ...]], list[RoutingPeer]] = {}
    kept: set[tuple[str, str, tuple[str, ...]]] = set()
    exits: dict[str, None] = {}
    skipped = 0
    for route in routes:
        try:
            key = parse_key(route.Peer)
            network = "" if route.Domains else _network(route.Network)
        except (BadKey, ValueError):
            skipped += 1
            continue
        domains = tuple(sorted({domain.lower().rstrip(".") for domain in route.Domains} - {"", "*", "*."}))
        if network in EXIT_NETWORKS:
            exits[route.NetID or route.ID] = None
            continue
        group = (route.NetID or route.ID, network, domains)
        if (not network and not domains) or (group not in peers and len(peers) >= MAX_GROUPS):
            skipped += 1
            continue
        peers.setdefault(group, []).append(RoutingPeer(key, min(max(route.Metric, 0), MAX_METRIC)))
        if route.keepRoute:
            kept.add(group)
    groups = tuple(
        RouteGroup(*group, keep=group in kept, peers=tuple(sorted(listed, key=lambda peer: (peer.metric, peer.key))))
        for group, listed in peers.items()
        if all(peer.key != own_key for peer in listed)
    )
    return PeerRoutes(groups, tuple(exits), skipped)


def _network(text: str) -> str:
    """Return a canonical prefix. Raises ValueError."""
    network = ip_network(text, strict=False)
    if "%" in text:
        raise ValueError("an overlay network has no zone")
    if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
        raise ValueError("packets inside the tunnel have IPv4 addresses in one form, which this is not")
    return str(network)


def score(peer: RoutingPeer, condition: Condition) -> float:
    """Return a carrier's score as NetBird's agents count it: connection before metric before path before latency."""
    latency = condition.latency if condition.latency is not None and condition.latency < 1 else UNKNOWN_LATENCY
    return (
        (MAX_METRIC - peer.metric) * 10
        + (100_000 if condition.connected else 0)
        + (0 if condition.relayed else 1)
        + (1 - latency)
    )


def choose(group: RouteGroup, condition: Callable[[bytes], Condition], current: bytes | None) -> bytes | None:
    """Return the key of the peer that carries a group's traffic; None if the group is empty.

    Peers that are connected or idle go first. If none is, the best of the others is chosen, so that a dial waits for
    that peer's path instead of failing.
    """
    conditions = {peer: condition(peer.key) for peer in group.peers}
    able = [peer for peer, state in conditions.items() if state.connected or state.idle]
    candidates = able or list(conditions)
    if not candidates:
        return None
    scores = {peer: score(peer, conditions[peer]) for peer in candidates}
    best = max(candidates, key=lambda peer: scores[peer])  # the first of equals, in the order of metric and key
    present = next((peer for peer in candidates if peer.key == current), None)
    if present is not None and scores[best] <= scores[present] + CHANGE_SCORE:
        return present.key
    return best.key


@dataclass(slots=True)
class Carriers:
    """The chosen carrier of each group, and the prefixes that follow from it."""

    groups: tuple[RouteGroup, ...] = ()
    chosen: dict[tuple[str, str, tuple[str, ...]], bytes] = field(default_factory=dict)
    _keys: frozenset[bytes] = frozenset()

    def replace(self, groups: tuple[RouteGroup, ...]) -> None:
        ids = {group.id for group in groups}
        self.groups = groups
        self._keys = frozenset(peer.key for group in groups for peer in group.peers)
        self.chosen = {group: key for group, key in self.chosen.items() if group in ids}

    def choose(self, condition: Callable[[bytes], Condition]) -> None:
        """Choose again, after a map or a change of a peer's connection."""
        for group in self.groups:
            key = choose(group, condition, self.chosen.get(group.id))
            if key is None:
                self.chosen.pop(group.id, None)
            else:
                self.chosen[group.id] = key

    def concern(self, key: bytes) -> bool:
        """True if the peer is a routing peer."""
        return key in self._keys

    def prefixes(self, addresses: Mapping[tuple[str, str, tuple[str, ...]], Iterable[str]]) -> dict[str, bytes]:
        """Return each prefix with its carrier. Of two groups with one prefix the first by name counts.

        Args:
            addresses: the addresses of each group of domains, from answers.
        """
        routes: dict[str, bytes] = {}
        for group in sorted(self.groups, key=lambda group: group.id):
            key = self.chosen.get(group.id)
            if key is None:
                continue
            if group.network:
                routes.setdefault(group.network, key)
            for address in addresses.get(group.id, ()):
                routes.setdefault(f"{address}/{128 if ':' in address else 32}", key)
        return routes
