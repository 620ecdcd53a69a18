"""Routes to network resources, in the maps of the peers that may reach them and of their carriers, the routing peers.

A rule towards a resource creates no rule between peers. Instead, its source peers get a route by each carrier, and each
carrier gets a firewall rule for the packets it forwards.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network
from typing import Final

from netbird_management.compute.wire_rules import PORTED, PROTOCOLS
from netbird_management.compute.zones import has_ipv6
from netbird_management.model.accounts import (
    NetworkResource,
    NetworkRouter,
    Peer,
    PolicyRule,
    ResourceType,
    RoutedNetwork,
)
from netbird_management.model.admission import admitted
from netbird_management.model.ids import PeerId
from netbird_management.model.services import TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_wire.management_pb2 import ACCEPT, DROP, PortInfo, Route, RouteFirewallRule

# Network of routes by name. Agents require a network in every route, and no host has an address in this one (RFC 5737).
PLACEHOLDER: Final = "192.0.2.0/32"
_IPV4, _IPV6, _NAMES = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Routed:
    """A rule towards one resource, with the peers that may open connections, and its carriers ordered by metric."""

    rule: PolicyRule
    sources: Mapping[PeerId, Peer]
    resource: NetworkResource
    carriers: tuple[tuple[NetworkRouter, Peer], ...]


@dataclass(slots=True)
class PeerRoutes:
    """The routes and route firewall rules of one peer. `others` are the peers that its map must therefore contain."""

    routes: dict[str, Route] = field(default_factory=dict)
    rules: list[RouteFirewallRule] = field(default_factory=list)
    others: dict[PeerId, Peer] = field(default_factory=dict)


def routed(rule: PolicyRule, sources: Mapping[PeerId, Peer], account: AccountSnapshot) -> Iterator[Routed]:
    """The rule, once for each enabled resource that it names and that has a carrier."""
    for network in account.networks:
        carriers = _carriers(network, account)
        for resource in network.resources:
            if carriers and resource.enabled and _names(rule, resource):
                yield Routed(rule, sources, resource, carriers)


def routes_of(peer: Peer, all_routed: Iterable[Routed]) -> PeerRoutes:
    """The routes that the peer uses or offers, and the firewall rules for packets that it forwards."""
    result = PeerRoutes()
    for routed_rule in all_routed:
        resource, sources = routed_rule.resource, routed_rule.sources
        accepted = routed_rule.rule.action != "drop"
        own = [router for router, carrier in routed_rule.carriers if carrier.id == peer.id]
        if own:
            # A carrier reaches the resource directly and needs no route by the other carriers.
            if accepted and sources:
                result.routes.setdefault(_route_id(resource, peer), _route(resource, own[0], peer))
                result.others |= {id_: source for id_, source in sources.items() if id_ != peer.id}
            result.rules.extend(_rules(routed_rule, peer))
        elif accepted and peer.id in sources:
            for router, carrier in routed_rule.carriers:
                result.routes.setdefault(_route_id(resource, carrier), _route(resource, router, carrier))
                result.others[carrier.id] = carrier
    return result


def answers_names(peer: Peer, account: AccountSnapshot) -> bool:
    """True if the peer is a carrier to a domain resource that a served service has as a target. A proxy resolves the
    name at the carrier, so the carrier must answer DNS queries even if the account's setting is off."""
    return any(
        any(carrier.id == peer.id for _, carrier in _carriers(network, account))
        for network in account.networks
        for resource in network.resources
        if resource.enabled and resource.type is ResourceType.DOMAIN and _is_dialed(resource, account)
    )


def _is_dialed(resource: NetworkResource, account: AccountSnapshot) -> bool:
    return any(
        service.served
        and any(
            target.enabled and target.target_type is TargetType.DOMAIN and target.target_id == resource.id
            for target in service.targets
        )
        for service in account.index.targeting_resource(resource.id).values()
    )


def _names(rule: PolicyRule, resource: NetworkResource) -> bool:
    named = rule.destination_resource
    if named is not None:
        return named.id == resource.id and named.type is resource.type
    return any(group in resource.groups for group in rule.destinations)


def _carriers(network: RoutedNetwork, account: AccountSnapshot) -> tuple[tuple[NetworkRouter, Peer], ...]:
    """The admitted routing peers of a network, each once, with its router of the lowest metric."""
    carriers: dict[PeerId, tuple[NetworkRouter, Peer]] = {}
    for router in sorted(network.routers, key=lambda router: (router.metric, router.id)):
        if router.enabled:
            ids = sorted(account.members(router.peer_groups)) if router.peer is None else [router.peer]
            for id_ in ids:
                peer = account.peers.get(id_)
                if peer is not None and admitted(peer, account):
                    carriers.setdefault(id_, (router, peer))
    return tuple(carriers.values())


def _route_id(resource: NetworkResource, carrier: Peer) -> str:
    return f"{resource.id}:{carrier.id}"


def _route(resource: NetworkResource, router: NetworkRouter, carrier: Peer) -> Route:
    names = resource.type is ResourceType.DOMAIN
    return Route(
        ID=_route_id(resource, carrier),
        Network=PLACEHOLDER if names else resource.address,
        NetworkType=_NAMES if names else _IPV6 if _is_ipv6(resource) else _IPV4,
        Peer=carrier.key,
        Metric=router.metric,
        Masquerade=router.masquerade,
        NetID=resource.name,
        Domains=[resource.address] if names else [],
        keepRoute=names,
    )


def _rules(routed_rule: Routed, carrier: Peer) -> Iterator[RouteFirewallRule]:
    """Firewall rules for packets from the rule's sources to its resource, one rule per port or port range."""
    resource, rule = routed_rule.resource, routed_rule.rule
    names = resource.type is ResourceType.DOMAIN
    both = has_ipv6(carrier)
    ranges: list[str] = []
    for source in routed_rule.sources.values():
        if source.id == carrier.id:
            continue
        if names or not _is_ipv6(resource):
            ranges.append(f"{source.ip}/32")
        if source.ipv6 is not None and both and has_ipv6(source) and (names or _is_ipv6(resource)):
            ranges.append(f"{source.ipv6}/128")
    if not ranges:
        return
    for port_info in _ports(rule):
        yield RouteFirewallRule(
            sourceRanges=ranges,
            action=DROP if rule.action == "drop" else ACCEPT,
            destination=PLACEHOLDER if names else resource.address,
            protocol=PROTOCOLS[rule.protocol],
            portInfo=port_info,
            isDynamic=names,
            domains=[resource.address] if names else [],
            PolicyID=rule.id.encode(),
            RouteID=_route_id(resource, carrier),
        )


def _ports(rule: PolicyRule) -> Iterator[PortInfo | None]:
    if rule.protocol not in PORTED or not (rule.ports or rule.port_ranges):
        yield None
        return
    yield from (PortInfo(port=port) for port in rule.ports)
    yield from (PortInfo(range=PortInfo.Range(start=ports.start, end=ports.end)) for ports in rule.port_ranges)


def _is_ipv6(resource: NetworkResource) -> bool:
    return resource.type is not ResourceType.DOMAIN and isinstance(ip_network(resource.address), IPv6Network)
