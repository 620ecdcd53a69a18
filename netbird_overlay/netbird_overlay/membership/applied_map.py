"""The network map in force: its peers, routes, names and inbound rules, as the node has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Rule
from netbird_overlay.errors import Unreachable
from netbird_overlay.members import plain_address
from netbird_overlay.membership.domain_routes import DomainRoutes
from netbird_overlay.membership.forwarder import TunnelExchange
from netbird_overlay.membership.names import Names, NameSources, read_names
from netbird_overlay.membership.paths_like import PathsLike
from netbird_overlay.membership.peer_routes import Carriers, Condition, PeerRoutes, RouteGroup, read_routes
from netbird_overlay.membership.zones import Zones, fold
from netbird_overlay.network_map import (
    Inbound,
    OwnNode,
    Roster,
    read_inbound,
    read_offline,
    read_roster,
)
from netbird_overlay.node import Node
from netbird_overlay.paths.servers import RemotePeer
from netbird_wire.management_pb2 import NetworkMap

REROUTE_DELAY = 0.1
"""Seconds from a change of a routing peer's connection until carriers are chosen again: the choice goes over all
routes, and peers may come and go at any rate."""
LARGE_BYTES = 64 << 10
"""Size from which a map is read in a thread, because reading it would keep the loop from its other work."""


@dataclass(frozen=True, slots=True)
class MapParts:
    """A map, read."""

    routes: PeerRoutes
    roster: Roster
    inbound: Inbound
    offline: dict[str, str]
    names: NameSources


def read_parts(network_map: NetworkMap, own_key: bytes, own: OwnNode) -> MapParts:
    """Read a map. Pure, so that a thread can do it."""
    return MapParts(
        read_routes(network_map.Routes, own_key),
        read_roster(network_map, own_key, own),
        read_inbound(network_map),
        read_offline(network_map),
        read_names(network_map.DNSConfig),
    )


class AppliedMap:
    """Applies maps to a node, one after the other, and changes only what differs.

    Args:
        connected: the keys of the peers that are connected now; kept current by the caller.
        own_ports: protocols and ports of the node's own services. Sources that a rule of the map admits may use them.
        rerouted: called after carriers were chosen again because a peer came or went.
    """

    def __init__(
        self,
        node: Node,
        paths: PathsLike | None,
        *,
        inbound: bool,
        endpoints: Mapping[bytes, Endpoint],
        connected: Collection[bytes],
        own_ports: Sequence[tuple[int, int]] = (),
        rerouted: Callable[[], None] = lambda: None,
    ) -> None:
        self._own_ports = own_ports
        self._node = node
        self._paths = paths
        self._admits = inbound
        self._endpoints = endpoints
        self._connected = connected
        self._rerouted = rerouted
        self._rerouting: asyncio.TimerHandle | None = None
        self._inbound = Inbound()
        self._carriers = Carriers()
        self._lazy = False
        self._offline: dict[str, str] = {}
        self._exits: tuple[str, ...] = ()
        ipv6 = any(":" in address for address in node.addresses)
        self._domains = DomainRoutes(
            forwarder=self._forwarder, exchange=TunnelExchange(node), learned=self._route, ipv6=ipv6
        )
        self._names = Names(ipv6=ipv6, domain_routes=self._domains.lookup)

    @property
    def zones(self) -> Zones:
        """The account's zones in force."""
        return self._names.zones

    async def apply(self, network_map: NetworkMap, own: OwnNode) -> dict[str, int]:
        """Apply a map, and return its counts for the log: first what is taken away, then rules, then new peers."""
        node = self._node
        if network_map.ByteSize() < LARGE_BYTES:
            parts = read_parts(network_map, node.public_key, own)
        else:
            parts = await asyncio.to_thread(read_parts, network_map, node.public_key, own)
        routes, roster = parts.routes, parts.roster
        inbound = parts.inbound if self._admits else Inbound()
        self._lazy = own.lazy
        self._names.use(parts.names)
        self._exits = routes.exits
        self._carriers.replace(routes.groups)
        self._domains.replace(routes.groups, network_map.DNSConfig.ForwarderPort)
        if roster.members is not None:
            node.retire(roster.members)  # before the rules, which may be for an address that changed hands
        if inbound != self._inbound:
            allowed = [*inbound.allowed, *self._own_rules(inbound)]
            node.driver.engine.set_inbound(allowed, denied=inbound.denied)
            self._inbound = inbound
        self._offline = parts.offline
        if roster.members is not None:
            await node.replace_members(roster.members, self._endpoints)
        if self._paths is not None:
            await self._paths.replace_peers(
                RemotePeer(member.key, member.version, self._lazy) for member in node.members.values()
            )
        self._carriers.choose(self._condition)
        self._route()
        node.driver.touch()
        return {
            "peers": len(node.members),
            "skipped": roster.skipped + routes.skipped,
            "rules": len(inbound.allowed) + len(inbound.denied),
            "routes": len(routes.groups),
        }

    def _own_rules(self, inbound: Inbound) -> list[Rule]:
        sources = dict.fromkeys(rule[0] for rule in inbound.allowed)
        return [(source, protocol, port, port) for source in sources for protocol, port in self._own_ports]

    # Routes -----------------------------------------------------------------------------------------------------------

    def peer_changed(self, key: bytes) -> None:
        """Choose carriers again soon, if this peer can be one. Changes until then share the choice."""
        if self._rerouting is None and self._carriers.concern(key):
            self._rerouting = asyncio.get_running_loop().call_later(REROUTE_DELAY, self._reroute)

    def _reroute(self) -> None:
        self._rerouting = None
        self._carriers.choose(self._condition)
        self._route()
        self._rerouted()

    def close(self) -> None:
        """Choose no carriers any more."""
        if self._rerouting is not None:
            self._rerouting.cancel()
            self._rerouting = None

    def _route(self) -> None:
        self._node.set_routes(self._carriers.prefixes(self._domains.addresses()))

    def _condition(self, key: bytes) -> Condition:
        if key not in self._node.members:
            return Condition()
        kind = self._paths.state(key).kind if self._paths is not None else "udp"
        connected = key in self._connected
        return Condition(connected=connected, idle=not connected and self._sleeps(key), relayed=kind == "relay")

    def _sleeps(self, key: bytes) -> bool:
        """True for an agent that may rest until a connection needs it; stock WireGuard clients do not."""
        return self._paths is not None and self._lazy and bool(self._node.members[key].version)

    # Names ------------------------------------------------------------------------------------------------------------

    async def resolve(self, name: str) -> Sequence[str]:
        """Return the addresses of a name. Of several, those of peers that are away go only where nothing else is left.

        Raises ConnectError.
        """
        addresses = await self._names.resolve(name)
        if len(addresses) > 1:
            present = [address for address in addresses if not self._away(address)]
            return present or addresses
        return addresses

    def _away(self, address: str) -> bool:
        member = self._node.whois(address)
        return address in self._offline or (member is not None and member.key not in self._connected)

    def _forwarder(self, group: RouteGroup) -> str:
        key = self._carriers.chosen.get(group.id)
        member = self._node.members.get(key) if key is not None else None
        if member is None:
            raise Unreachable(f"no routing peer of {group.name} is in the map")
        return next((address for address in member.addresses if "." in address), member.addresses[0])

    # Reachability -----------------------------------------------------------------------------------------------------

    def explain(self, address: str) -> str:
        """Return why no peer has an address, for the message of a failed dial."""
        if address in self._offline:
            return f"peer {self._offline[address] or address} is offline"
        if self._exits:
            return f"no peer has this address, and exit nodes ({', '.join(self._exits)}) are not used"
        return "no peer has this address"

    def unreachable(self, host: str) -> str:
        """Return why a dial to an address or name would fail now; "" if it would be tried.

        A name that only a name server can tell is taken as reachable.
        """
        address = plain_address(host)
        if address is not None:
            return self._unreachable_address(address)
        name = fold(host)
        group = self._domains.group_of(name)
        if group is not None:
            key = self._carriers.chosen.get(group.id)
            return self._unreachable_peer(key, f"the routing peer of {group.name}")
        reasons = [self._unreachable_address(address) for address in self._names.local(name)]
        return reasons[0] if reasons and all(reasons) else ""

    def _unreachable_address(self, address: str) -> str:
        member = self._node.whois(address)
        if member is not None:
            return self._unreachable_peer(member.key, f"peer {member.name or address}")
        carrier = self._node.routes.carrier(address)
        if carrier is not None and address not in self._offline:
            return self._unreachable_peer(carrier, f"the routing peer of {address}")
        return self.explain(address)

    def _unreachable_peer(self, key: bytes | None, label: str) -> str:
        if key is None or key not in self._node.members:
            return f"{label} is offline"
        if key in self._connected or self._sleeps(key):
            return ""
        state = self._node.driver.engine.peer(key)
        if state is None or state.endpoint is None:
            return f"{label} has no path to us yet"
        return f"{label} does not answer"
