"""What is behind routing peers: who gets a route, who carries, and what a carrier passes on."""

from dataclasses import replace
from typing import Any

import pytest

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import (
    AccountSettings,
    NetworkResource,
    NetworkRouter,
    Policy,
    PolicyRule,
    PortRange,
    Resource,
    ResourceType,
    RoutedNetwork,
)
from netbird_management.model.ids import GroupId, PolicyId
from netbird_management.model.services import Service, Target, TargetOptions, TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import load_hooks
from netbird_wire.management_pb2 import ACCEPT, ALL, DROP, TCP, NetworkMap
from tests.netbird_management.compute.test_network_map import peer, proxy_peer, service, snapshot

ALICE = peer("alice", "100.64.0.2")
CARRIER = peer("carrier", "100.64.0.3")
SPARE = peer("spare", "100.64.0.4")
PROXY = proxy_peer("proxy", "100.64.0.9")
HOST = NetworkResource("db", "database", ResourceType.HOST, "10.0.0.5/32")
SUBNET = NetworkResource("lan", "office", ResourceType.SUBNET, "10.1.0.0/16", groups=(GroupId("lans"),))
NAMES = NetworkResource("names", "intranet", ResourceType.DOMAIN, "wiki.internal")
BY_PEER = NetworkRouter("r1", 100, True, peer=CARRIER.id)
BY_GROUP = NetworkRouter("r2", 200, False, peer_groups=(GroupId("spares"),))


def network(*resources: NetworkResource, routers: tuple[NetworkRouter, ...] = (BY_PEER,)) -> RoutedNetwork:
    return RoutedNetwork("n", "office", resources=resources, routers=routers)


def account(*resources: NetworkResource, **fields: Any) -> AccountSnapshot:
    routers = fields.pop("routers", (BY_PEER,))
    return snapshot(
        ALICE,
        CARRIER,
        SPARE,
        PROXY,
        groups={"people": ["alice"], "spares": ["spare"], "lans": []},
        networks=(network(*resources, routers=routers),),
        **fields,
    )


def policy(**fields: Any) -> Policy:
    rule = PolicyRule(id="p", name="p", sources=(GroupId("people"),), **fields)
    return Policy(PolicyId("p"), "p", rules=(rule,))


def to(resource: NetworkResource) -> Resource:
    return Resource(resource.id, resource.type)


def targeting(resource: NetworkResource, port: int = 5432, host: str = "", **fields: Any) -> Service:
    one = Target(
        target_id=resource.id, target_type=TargetType(resource.type.value), protocol="http", port=port, host=host
    )
    return service("shop", targets=(replace(one, **fields),))


@pytest.fixture
def maps() -> NetworkMaps:
    return NetworkMaps(load_hooks(["private_service", "direct_upstream"]))


def others(told: NetworkMap) -> list[str]:
    return [one.fqdn.partition(".")[0] for one in told.remotePeers]


def test_a_service_leads_its_proxies_to_a_resource(maps: NetworkMaps) -> None:
    """The proxy gets a route by the carrier and knows it; the carrier lets the proxy through, to this port alone."""
    known = account(HOST, services=(targeting(HOST),))

    proxys, carriers = maps.of(known, PROXY), maps.of(known, CARRIER)

    (route,) = proxys.Routes
    assert (route.Network, route.NetworkType, route.Peer, route.Metric, route.Masquerade, route.NetID) == (
        "10.0.0.5/32",
        1,
        CARRIER.key,
        100,
        True,
        "database",
    )
    assert others(proxys) == ["carrier"]
    assert proxys.routesFirewallRulesIsEmpty
    (rule,) = carriers.routesFirewallRules
    assert (rule.sourceRanges, rule.destination, rule.protocol, rule.action) == (
        ["100.64.0.9/32"],
        "10.0.0.5/32",
        TCP,
        ACCEPT,
    )
    assert (rule.portInfo.range.start, rule.portInfo.range.end) == (5432, 5432)
    assert rule.RouteID == route.ID
    assert [one.Peer for one in carriers.Routes] == [CARRIER.key]
    assert others(carriers) == ["proxy"]
    assert not carriers.routesFirewallRulesIsEmpty


def test_others_hear_nothing_of_it(maps: NetworkMaps) -> None:
    """A peer that may not reach it and does not carry to it has no route, no rule, and nobody more to know."""
    told = maps.of(account(HOST, services=(targeting(HOST),)), ALICE)

    assert (list(told.Routes), list(told.routesFirewallRules), others(told)) == ([], [], [])


@pytest.mark.parametrize("by", ["itself", "its group"])
def test_policies_reach_resources(maps: NetworkMaps, by: str) -> None:
    """By naming the resource, or a group that it is in; ports become rules of the carrier's."""
    towards: dict[str, Any] = (
        {"destination_resource": to(SUBNET)} if by == "itself" else {"destinations": (GroupId("lans"),)}
    )
    allowed = policy(protocol="tcp", ports=(22, 80), **towards)
    known = account(SUBNET, policies=(allowed,))

    assert [route.Network for route in maps.of(known, ALICE).Routes] == ["10.1.0.0/16"]
    assert [rule.portInfo.port for rule in maps.of(known, CARRIER).routesFirewallRules] == [22, 80]
    assert not maps.of(known, ALICE).FirewallRules


def test_what_is_forbidden_gives_no_way(maps: NetworkMaps) -> None:
    """A rule that drops is the carrier's to enforce, and makes no route and no acquaintance."""
    known = account(SUBNET, policies=(policy(destination_resource=to(SUBNET), action="drop"),))

    assert not maps.of(known, ALICE).Routes
    (rule,) = maps.of(known, CARRIER).routesFirewallRules
    assert (rule.action, rule.protocol, rule.HasField("portInfo")) == (DROP, ALL, False)
    assert others(maps.of(known, CARRIER)) == []


def test_each_carrier_is_a_way(maps: NetworkMaps) -> None:
    """A route a carrier, each with its metric; a carrier has its own and none by the others."""
    allowed = policy(destination_resource=to(SUBNET), port_ranges=(PortRange(1, 9),), protocol="udp")
    known = account(SUBNET, policies=(allowed,), routers=(BY_GROUP, BY_PEER))

    assert [(route.Peer, route.Metric) for route in maps.of(known, ALICE).Routes] == [
        (CARRIER.key, 100),
        (SPARE.key, 200),
    ]
    assert [route.Peer for route in maps.of(known, SPARE).Routes] == [SPARE.key]


@pytest.mark.parametrize(
    ("resource", "router"),
    [
        (replace(HOST, enabled=False), BY_PEER),
        (HOST, replace(BY_PEER, enabled=False)),
        (HOST, NetworkRouter("r", 1, True, peer_groups=(GroupId("lans"),))),
        (replace(HOST, type=ResourceType.SUBNET), BY_PEER),
    ],
)
def test_what_is_off_is_not_there(maps: NetworkMaps, resource: NetworkResource, router: NetworkRouter) -> None:
    """A disabled resource or router, a group without peers, a target of another type than the resource."""
    known = account(resource, services=(targeting(HOST),), routers=(router,))

    assert not maps.of(known, PROXY).Routes
    assert not maps.of(known, CARRIER).routesFirewallRules


def test_names_are_asked_of_the_carrier(maps: NetworkMaps) -> None:
    """A domain is a dynamic route: its addresses are the carrier's to say, and kept."""
    known = account(NAMES, services=(targeting(NAMES),))

    (route,) = maps.of(known, PROXY).Routes
    assert (route.NetworkType, list(route.Domains), route.keepRoute) == (3, ["wiki.internal"], True)
    (rule,) = maps.of(known, CARRIER).routesFirewallRules
    assert (rule.isDynamic, list(rule.domains)) == (True, ["wiki.internal"])


def _asked(known: AccountSnapshot, maps: NetworkMaps, who: Any = CARRIER) -> bool:
    return maps.of(known, who).peerConfig.RoutingPeerDnsResolutionEnabled


def test_carriers_to_dialed_names_resolve_them(maps: NetworkMaps) -> None:
    """Whatever the account says, direct and by a group; not others, and not for what is off or of another type."""
    off = AccountSettings(routing_peer_dns_resolution_enabled=False)

    def known(resource: NetworkResource, one: Service | None = None, **fields: Any) -> AccountSnapshot:
        return account(resource, services=(one or targeting(resource),), settings=off, **fields)

    assert _asked(known(NAMES), maps)
    assert _asked(known(NAMES, routers=(BY_GROUP,)), maps, SPARE)
    assert not _asked(known(NAMES), maps, ALICE)
    assert _asked(known(NAMES), maps, PROXY)
    for resource, one, router in (
        (replace(NAMES, enabled=False), targeting(NAMES), BY_PEER),
        (NAMES, replace(targeting(NAMES), enabled=False), BY_PEER),
        (NAMES, replace(targeting(NAMES), terminated=True), BY_PEER),
        (NAMES, targeting(NAMES, enabled=False), BY_PEER),
        (NAMES, targeting(NAMES), replace(BY_PEER, enabled=False)),
        (HOST, targeting(HOST), BY_PEER),
    ):
        assert not _asked(known(resource, one, routers=(router,)), maps), (resource, one, router)
    assert _asked(account(HOST, settings=AccountSettings()), maps, ALICE)


def test_ipv6_goes_by_ipv6(maps: NetworkMaps) -> None:
    """What is behind an IPv6 network is reached from IPv6 addresses, where both take part in it."""
    alice, carrier = peer("alice", "100.64.0.2", "fd00::2"), peer("carrier", "100.64.0.3", "fd00::3")
    lan = replace(SUBNET, address="fd01::/48")
    allowed = policy(destination_resource=to(lan))
    for who, ranges in ((alice, ["fd00::2/128"]), (ALICE, [])):
        known = snapshot(
            who,
            carrier,
            groups={"people": ["alice"]},
            networks=(network(lan),),
            policies=(allowed,),
        )
        assert [list(rule.sourceRanges) for rule in maps.of(known, carrier).routesFirewallRules] == (
            [ranges] if ranges else []
        )
        assert [route.NetworkType for route in maps.of(known, who).Routes] == [2]


def test_a_direct_upstream_is_allowed_too(maps: NetworkMaps) -> None:
    """The flag says how the proxy dials; that it may be routed there does no harm, and is what NetBird's do."""
    one = targeting(HOST, options=TargetOptions(direct_upstream=True))
    assert maps.of(account(HOST, services=(one,)), PROXY).Routes
