"""What is behind routing peers, in the maps of those who may reach it and of those who carry the packets.

A rule towards a resource makes no rule between peers: those on its side of sources get a route by each carrier, and
carriers get a rule for what they pass on.
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

PLACEHOLDER: Final = "192.0.2.0/32"
"""Where only names count: agents want a network in every route, and nobody has an address in this one."""
_IPV4, _IPV6, _NAMES = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Routed:
    """A rule towards one resource, with those who may begin and those who carry, in the order of their metric."""

    rule: PolicyRule
    sources: Mapping[PeerId, Peer]
    resource: NetworkResource
    carriers: tuple[tuple[NetworkRouter, Peer], ...]


@dataclass(slots=True)
class PeerRoutes:
    """A peer's part of them. `others` are the peers that it must know for it."""

    routes: dict[str, Route] = field(default_factory=dict)
    rules: list[RouteFirewallRule] = field(default_factory=list)
    others: dict[PeerId, Peer] = field(default_factory=dict)


def routed(rule: PolicyRule, sources: Mapping[PeerId, Peer], account: AccountSnapshot) -> Iterator[Routed]:
    """What of the rule leads to resources. A disabled resource, and one that nobody carries to, is not there."""
    for network in account.networks:
        carriers = _carriers(network, account)
        for resource in network.resources:
            if carriers and resource.enabled and _names(rule, resource):
                yield Routed(rule, sources, resource, carriers)


def routes_of(peer: Peer, all_routed: Iterable[Routed]) -> PeerRoutes:
    """The routes that the peer uses or offers, and the rules for what it passes on."""
    found = PeerRoutes()
    for one in all_routed:
        accepted = one.rule.action != "drop"
        own = [router for router, carrier in one.carriers if carrier.id == peer.id]
        if own:
            # Who carries to a resource has a way there already: no route by the other carriers.
            if accepted and one.sources:
                found.routes.setdefault(_route_id(one.resource, peer), _route(one.resource, own[0], peer))
                found.others |= {id_: source for id_, source in one.sources.items() if id_ != peer.id}
            found.rules.extend(_rules(one, peer))
        elif accepted and peer.id in one.sources:
            for router, carrier in one.carriers:
                found.routes.setdefault(_route_id(one.resource, carrier), _route(one.resource, router, carrier))
                found.others[carrier.id] = carrier
    return found


def answers_names(peer: Peer, account: AccountSnapshot) -> bool:
    """Whether the peer carries to names that a service's target is: whoever dials them asks there, whatever the
    account's setting says."""
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
    """Each admitted peer once, by its best router."""
    found: dict[PeerId, tuple[NetworkRouter, Peer]] = {}
    for router in sorted(network.routers, key=lambda router: (router.metric, router.id)):
        if router.enabled:
            ids = sorted(account.members(router.peer_groups)) if router.peer is None else [router.peer]
            for id_ in ids:
                peer = account.peers.get(id_)
                if peer is not None and admitted(peer, account):
                    found.setdefault(id_, (router, peer))
    return tuple(found.values())


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


def _rules(one: Routed, carrier: Peer) -> Iterator[RouteFirewallRule]:
    """One a port: what comes from these addresses may go there."""
    resource, rule = one.resource, one.rule
    names = resource.type is ResourceType.DOMAIN
    both = has_ipv6(carrier)
    ranges: list[str] = []
    for source in one.sources.values():
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
