"""Maps of peers: against captured ones, and case by case."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from netbird_management import PluginInfo, hookimpl
from netbird_management.compute.agent_versions import forwarder_port
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import (
    Account,
    AccountSettings,
    CustomDomain,
    Group,
    Peer,
    PeerMeta,
    Policy,
    PolicyRule,
    PortRange,
    ProxyPeer,
    RoutedNetwork,
)
from netbird_management.model.ids import AccountId, GroupId, PeerId, PolicyId, ServiceId
from netbird_management.model.services import Service, ServiceMeta, Target, TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import load_hooks
from netbird_wire.management_pb2 import IN, OUT, NetworkMap, SyncResponse

GOLDEN = Path(__file__).parents[2] / "corpus" / "golden" / "wire.jsonl"
THEN = datetime(2026, 1, 1, tzinfo=UTC)
HOME = AccountId("a")


def captured() -> list[NetworkMap]:
    """Every map in the captured streams, in order."""
    lines = (json.loads(line) for line in GOLDEN.read_text().splitlines())
    bodies = [line["inner_base64"] for line in lines if line["kind"] == "ManagementService.Sync.resp"]
    return [SyncResponse.FromString(base64.b64decode(body)).NetworkMap for body in bodies]


def of_golden(network_map: NetworkMap, name: str) -> Peer:
    """A peer as the captured maps of others describe it."""
    for other in captured():
        for remote in other.remotePeers:
            if remote.fqdn == f"{name}.netbird.selfhosted":
                v4, v6 = (address.partition("/")[0] for address in remote.allowedIps)
                return peer(name, v4, v6, key=remote.wgPubKey, ssh=remote.sshConfig.sshPubKey.decode())
    raise LookupError(name)


def peer(
    name: str, v4: str, v6: str | None = None, *, key: str = "", ssh: str = "", version: str = "development"
) -> Peer:
    return Peer(
        id=PeerId(name),
        account_id=HOME,
        key=key or f"key of {name}",
        ip=IPv4Address(v4),
        ipv6=None if v6 is None else IPv6Address(v6),
        name=name,
        dns_label=name,
        created_at=THEN,
        meta=PeerMeta(netbird_version=version, capabilities=(1, 2) if v6 else ()),
        ssh_key=ssh,
    )


def proxy_peer(name: str, v4: str, v6: str | None = None, *, connected: bool = True, cluster: str = "px.test") -> Peer:
    return replace(peer(name, v4, v6), proxy=ProxyPeer(cluster), connected=connected)


def service(name: str, *groups: str, targets: tuple[Target, ...] = (), **fields: Any) -> Service:
    built = Service(
        id=ServiceId(name),
        account_id=HOME,
        name=name,
        domain=f"{name}.px.test",
        proxy_cluster="px.test",
        meta=ServiceMeta(THEN),
        targets=targets,
        private=bool(groups),
        access_groups=tuple(GroupId(id_) for id_ in groups),
    )
    return replace(built, **fields)


def target(of: Peer, port: int, path: str | None = None) -> Target:
    return Target(target_id=of.id, target_type=TargetType.PEER, protocol="http", port=port, path=path)


def snapshot(
    *peers: Peer,
    groups: dict[str, list[str]] | None = None,
    services: tuple[Service, ...] = (),
    policies: tuple[Policy, ...] = (),
    domains: tuple[CustomDomain, ...] = (),
    networks: tuple[RoutedNetwork, ...] = (),
    network: tuple[str, str] = ("100.64.0.0/16", "fd00::/64"),
    settings: AccountSettings | None = None,
    serial: int = 1,
) -> AccountSnapshot:
    everybody: list[str] = [one.id for one in peers if one.proxy is None]
    named = {"All": everybody, **(groups or {})}
    return AccountSnapshot.of(
        Account(
            id=HOME,
            created_at=THEN,
            created_by="",
            network=IPv4Network(network[0], strict=False),
            network_v6=IPv6Network(network[1], strict=False),
            dns_domain="netbird.selfhosted",
            serial=serial,
            settings=settings or AccountSettings(),
        ),
        peers={one.id: one for one in peers},
        groups={
            GroupId(name): Group(GroupId(name), name, frozenset(PeerId(id_) for id_ in members))
            for name, members in named.items()
        },
        services={one.id: one for one in services},
        policies={policy.id: policy for policy in policies},
        custom_domains=domains,
        networks=networks,
    )


def allow(id_: str, source: str, destination: str, **fields: Any) -> Policy:
    rule = PolicyRule(id=id_, name=id_, sources=(GroupId(source),), destinations=(GroupId(destination),))
    return Policy(PolicyId(id_), id_, rules=(replace(rule, **fields),))


@pytest.fixture
def maps() -> NetworkMaps:
    return NetworkMaps(load_hooks(["private_service", "direct_upstream"]))


def said(network_map: NetworkMap) -> dict[str, Any]:
    """What a map says, without what stands in no order."""
    return {
        "rules": {
            (
                rule.PeerIP,
                rule.Direction,
                rule.Action,
                rule.Protocol,
                rule.Port,
                str(rule.PortInfo),
                *rule.sourcePrefixes,
            )
            for rule in network_map.FirewallRules
        },
        "peers": {remote.fqdn: remote for remote in network_map.remotePeers},
        "zones": {
            (zone.Domain, zone.NonAuthoritative, zone.SearchDomainDisabled): {
                (record.Name, record.Type, record.Class, record.TTL, record.RData) for record in zone.Records
            }
            for zone in network_map.DNSConfig.CustomZones
        },
        "own": network_map.peerConfig,
        "empty": (
            network_map.remotePeersIsEmpty,
            network_map.firewallRulesIsEmpty,
            network_map.routesFirewallRulesIsEmpty,
        ),
        "dns": (network_map.DNSConfig.ServiceEnable, network_map.DNSConfig.ForwarderPort),
        "serial": network_map.Serial,
        "ssh": network_map.sshAuth,
    }


def doors(network_map: NetworkMap, direction: int = IN) -> set[tuple[str, int]]:
    rules = network_map.FirewallRules
    return {(rule.PeerIP, rule.PortInfo.range.start) for rule in rules if rule.Direction == direction}


def names(network_map: NetworkMap) -> set[str]:
    return {remote.fqdn.split(".")[0] for remote in network_map.remotePeers}


def zone(network_map: NetworkMap, apex: str) -> set[tuple[str, str]] | None:
    zones = {zone.Domain: zone for zone in network_map.DNSConfig.CustomZones}
    return None if apex not in zones else {(record.Name, record.RData) for record in zones[apex].Records}


class TestGolden:
    """The lab that the captured maps came from, computed by us."""

    proxy_name = "proxy-dc1ceplqmd2umjrodeu0-247-152"

    def account(self, serial: int, *services: Service) -> tuple[AccountSnapshot, dict[str, Peer]]:
        maps = captured()
        members = {name: of_golden(maps[0], name) for name in ("alice", "bob")}
        node = replace(
            of_golden(maps[0], self.proxy_name),
            id=PeerId("dc1ceplqmd2umjrodeug"),
            proxy=ProxyPeer("px.test"),
            connected=True,
        )
        built = snapshot(
            *members.values(),
            node,
            groups={"engineering": ["alice"]},
            services=services,
            policies=(allow("dc1ce85qmd2umjrode2g", "All", "All", bidirectional=True),),
            network=("100.106.0.0/16", f"{members['alice'].ipv6}/64"),
            settings=AccountSettings(lazy_connection_enabled=True),
            serial=serial,
        )
        return built, {**members, "proxy": node}

    def private(self) -> Service:
        return replace(service("priv", "engineering"), id=ServiceId("dc1ceptqmd2umjrodf00"))

    def test_a_members_map(self, maps: NetworkMaps) -> None:
        """Alice, with Bob by the default policy and the proxy by the private service: as captured, whole."""
        account, peers = self.account(4, self.private())
        assert said(maps.of(account, peers["alice"])) == said(self.golden("alice", 2))

    def test_a_proxys_map(self, maps: NetworkMaps) -> None:
        """The proxy with its one member."""
        account, peers = self.account(4, self.private())
        ours, theirs = maps.of(account, peers["proxy"]), self.golden(self.proxy_name, 1)
        assert said(ours) == said(theirs)
        assert {rule.PolicyID for rule in ours.FirewallRules} == {rule.PolicyID for rule in theirs.FirewallRules}

    def test_a_proxys_map_with_targets(self, maps: NetworkMaps) -> None:
        """Two more services on Bob: he is a remote peer that the proxy may open connections to, and he none to it."""
        account, peers = self.account(4, self.private())
        bob = peers["bob"]
        services = (
            self.private(),
            service("one", targets=(target(bob, 9002, "/"),)),
            service("two", targets=(target(bob, 9002),)),
        )
        account, peers = self.account(4, *services)
        assert said(maps.of(account, peers["proxy"])) == said(self.golden(self.proxy_name, 2))

    def golden(self, name: str, remote_peers: int) -> NetworkMap:
        return next(
            one
            for one in captured()
            if one.peerConfig.fqdn == f"{name}.netbird.selfhosted" and len(one.remotePeers) == remote_peers
        )


ALICE, BOB = peer("alice", "100.64.0.1", "fd00::1"), peer("bob", "100.64.0.2", "fd00::2")
PROXY = proxy_peer("node", "100.64.0.9", "fd00::9")


def test_nobody_in_no_access_group_is_told(maps: NetworkMaps) -> None:
    """Who is in no access group is in no map of a proxy, and has no proxy in its own: WireGuard never answers."""
    account = snapshot(ALICE, BOB, PROXY, groups={"g": ["alice"]}, services=(service("s", "g"),))
    assert names(maps.of(account, PROXY)) == {"alice"}
    outsider = maps.of(account, BOB)
    assert (names(outsider), outsider.remotePeersIsEmpty, outsider.firewallRulesIsEmpty) == (set(), True, True)
    assert zone(outsider, "px.test.") is None


def test_an_empty_map_says_so(maps: NetworkMaps) -> None:
    """A proxy without members: every list empty, every flag that says so set, so that nothing is let in."""
    lonely = maps.of(snapshot(ALICE, PROXY), PROXY)
    assert not lonely.remotePeers
    assert not lonely.FirewallRules
    assert (lonely.remotePeersIsEmpty, lonely.firewallRulesIsEmpty, lonely.routesFirewallRulesIsEmpty) == (True,) * 3


def test_a_member_gets_the_names_of_connected_proxies(maps: NetworkMaps) -> None:
    """One address for each proxy that is there; a proxy that is away stays reachable and is not named."""
    away = proxy_peer("away", "100.64.0.8", connected=False)
    other = proxy_peer("other", "100.64.0.7", cluster="elsewhere.test")
    account = snapshot(
        ALICE, PROXY, away, other, groups={"g": ["alice"]}, services=(service("s", "g"), service("t", "g"))
    )
    network_map = maps.of(account, ALICE)
    assert zone(network_map, "px.test.") == {("s.px.test.", "100.64.0.9"), ("t.px.test.", "100.64.0.9")}
    assert names(network_map) == {"node", "away"}


def test_a_proxy_that_answers_queries_gets_all_services_names(maps: NetworkMaps) -> None:
    """Its callers are members of different groups; a proxy that answers nobody gets none."""
    answering = replace(PROXY, proxy=replace(PROXY.proxy, serves_dns=True))
    services = (service("s", "g"), service("t", "h"))
    groups = {"g": ["alice"], "h": ["bob"]}
    account = snapshot(ALICE, BOB, answering, groups=groups, services=services)
    assert zone(maps.of(account, answering), "px.test.") == {("s.px.test.", "100.64.0.9"), ("t.px.test.", "100.64.0.9")}
    account = snapshot(ALICE, BOB, PROXY, groups=groups, services=services)
    assert zone(maps.of(account, PROXY), "px.test.") is None


def test_a_custom_domain_is_its_own_zone(maps: NetworkMaps) -> None:
    """Services under a custom domain are named there together, by the longest one; where it is of another cluster, not
    proved yet, or not known at all, nowhere."""
    domains = (
        CustomDomain("d", HOME, "corp.example", "px.test", validated=True),
        CustomDomain("e", HOME, "deep.corp.example", "px.test", validated=True),
        CustomDomain("f", HOME, "other.example", "elsewhere.test", validated=True),
        CustomDomain("g", HOME, "unproved.example", "px.test"),
    )
    services = (
        service("s", "g", domain="s.corp.example"),
        service("s2", "g", domain="s2.corp.example"),
        service("v", "g", domain="v.deep.corp.example"),
        service("w", "g", domain="w.other.example"),
        service("x", "g", domain="x.unproved.example"),
        service("public", domain="public.corp.example"),
        service("t", "g", domain="t.nowhere.example"),
        service("u", "g"),
    )
    account = snapshot(ALICE, PROXY, groups={"g": ["alice"]}, services=services, domains=domains)
    network_map = maps.of(account, ALICE)
    assert zone(network_map, "corp.example.") == {
        ("s.corp.example.", "100.64.0.9"),
        ("s2.corp.example.", "100.64.0.9"),
    }
    assert zone(network_map, "deep.corp.example.") == {("v.deep.corp.example.", "100.64.0.9")}
    assert zone(network_map, "other.example.") is None
    assert zone(network_map, "unproved.example.") is None
    assert zone(network_map, "px.test.") == {("u.px.test.", "100.64.0.9")}
    assert zone(network_map, "nowhere.example.") is None


@pytest.mark.parametrize(
    "withdrawn",
    [{"enabled": False}, {"private": False}, {"access_groups": ()}, {"access_groups": (GroupId("gone"),)}],
    ids=["disabled", "public", "without groups", "with a group that is gone"],
)
def test_what_is_not_a_private_service_opens_nothing(maps: NetworkMaps, withdrawn: dict[str, Any]) -> None:
    """No members, no doors, no names."""
    account = snapshot(ALICE, PROXY, groups={"g": ["alice"]}, services=(service("s", "g", **withdrawn),))
    assert not maps.of(account, PROXY).remotePeers
    assert zone(maps.of(account, ALICE), "px.test.") is None


def test_doors_are_80_and_443_and_open_inwards_only(maps: NetworkMaps) -> None:
    """A proxy takes connections of members on two ports, and opens none to them."""
    account = snapshot(ALICE, PROXY, groups={"g": ["alice"]}, services=(service("s", "g"),))
    network_map = maps.of(account, PROXY)
    both = {("100.64.0.1", 80), ("100.64.0.1", 443), ("fd00::1", 80), ("fd00::1", 443)}
    assert (doors(network_map), doors(network_map, OUT)) == (both, set())


def test_a_target_is_reached_and_reaches_nothing(maps: NetworkMaps) -> None:
    """The proxy may open its target's port; the target may open nothing of the proxy's; a disabled target is nobody."""
    off = replace(target(ALICE, 81), enabled=False)
    account = snapshot(ALICE, BOB, PROXY, services=(service("s", targets=(target(BOB, 8080), off)),))
    of_proxy, of_bob = maps.of(account, PROXY), maps.of(account, BOB)
    assert names(of_proxy) == {"bob"}
    assert (doors(of_proxy), doors(of_proxy, OUT)) == (set(), {("100.64.0.2", 8080), ("fd00::2", 8080)})
    assert doors(of_bob) == {("100.64.0.9", 8080), ("fd00::9", 8080)}


def test_the_same_door_of_many_services_is_told_once(maps: NetworkMaps) -> None:
    """The number of rules grows with members, not with members times services."""
    services = tuple(service(f"s{number}", "g") for number in range(20))
    account = snapshot(ALICE, PROXY, groups={"g": ["alice"]}, services=services)
    assert len(maps.of(account, PROXY).FirewallRules) == 4


def test_ipv6_only_between_two_that_have_it(maps: NetworkMaps) -> None:
    """An agent reports that it does IPv6; plain WireGuard does what its file tells it."""
    phone = replace(peer("phone", "100.64.0.5"), ipv6=IPv6Address("fd00::5"), stock=True)
    old = replace(peer("old", "100.64.0.6"), ipv6=IPv6Address("fd00::6"), meta=PeerMeta())
    account = snapshot(phone, old, ALICE, PROXY, groups={"g": ["phone", "old", "alice"]}, services=(service("s", "g"),))
    allowed = {remote.fqdn.split(".")[0]: list(remote.allowedIps) for remote in maps.of(account, PROXY).remotePeers}
    assert allowed == {
        "phone": ["100.64.0.5/32", "fd00::5/128"],
        "old": ["100.64.0.6/32"],
        "alice": ["100.64.0.1/32", "fd00::1/128"],
    }
    assert not maps.of(account, old).peerConfig.address_v6


def test_stock_peers_are_there_though_never_connected(maps: NetworkMaps) -> None:
    """Presence says nothing about a peer that does not sync: it is in the map, or its proxy would not answer it."""
    phone = replace(peer("phone", "100.64.0.5"), stock=True, connected=False)
    account = snapshot(phone, PROXY, groups={"g": ["phone"]}, services=(service("s", "g"),))
    assert names(maps.of(account, PROXY)) == {"phone"}


def test_old_agents_get_ports_one_by_one(maps: NetworkMaps) -> None:
    """Below 0.48.0 a range of one port is that port, and a wider one is left out; single ports come before ranges."""
    ranged = allow("r", "All", "All", protocol="tcp", port_ranges=(PortRange(80, 80), PortRange(90, 99)))
    listed = allow("l", "All", "All", protocol="udp", ports=(53,), port_ranges=(PortRange(1, 2),))
    old = replace(ALICE, meta=PeerMeta(netbird_version="0.47.9"))
    account = snapshot(old, BOB, policies=(ranged, listed))

    def told(one: Peer) -> set[tuple[str, int, int]]:
        rules = maps.of(account, one).FirewallRules
        return {(rule.Port, rule.PortInfo.range.start, rule.PortInfo.range.end) for rule in rules}

    assert told(old) == {("80", 0, 0), ("53", 0, 0)}
    assert told(BOB) == {("", 80, 80), ("", 90, 99), ("53", 0, 0)}


def test_a_drop_connects_nobody(maps: NetworkMaps) -> None:
    """A rule that drops is told as one, and does not introduce two peers to each other."""
    account = snapshot(ALICE, BOB, policies=(allow("d", "All", "All", action="drop"),))
    network_map = maps.of(account, ALICE)
    assert not network_map.remotePeers
    assert {rule.Action for rule in network_map.FirewallRules} == {1}


def test_disabled_policies_and_rules_say_nothing(maps: NetworkMaps) -> None:
    """Neither of the two is looked at."""
    policies = (replace(allow("p", "All", "All"), enabled=False), allow("r", "All", "All", enabled=False))
    assert not maps.of(snapshot(ALICE, BOB, policies=policies), ALICE).remotePeers


class _Plugin:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="for tests")


class _Counting(_Plugin):
    """Counts how often it is asked for patches, and of which service."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @hookimpl
    def network_patches(self, service: Service) -> None:
        self.asked.append(service.id)


def test_a_change_of_one_service_costs_one_service() -> None:
    """Patches are kept: presence and sightings cost nothing, a service costs itself, its account's groups all."""
    counting = _Counting()
    maps = NetworkMaps(load_hooks([("counting", counting)]))
    services = tuple(service(f"s{number}", "g") for number in range(3))
    maps.of(snapshot(ALICE, PROXY, groups={"g": ["alice"]}, services=services), PROXY)
    assert counting.asked == ["s0", "s1", "s2"]
    seen = replace(ALICE, last_seen=THEN, connected=True, stream_started_ns=7)
    maps.of(snapshot(seen, PROXY, groups={"g": ["alice"]}, services=services, serial=2), PROXY)
    assert counting.asked == ["s0", "s1", "s2"]
    changed = (replace(services[0], name="renamed"), *services[1:])
    maps.of(snapshot(seen, PROXY, groups={"g": ["alice"]}, services=changed), PROXY)
    assert counting.asked == ["s0", "s1", "s2", "s0"]
    maps.of(snapshot(seen, PROXY, groups={"g": []}, services=changed), PROXY)
    assert counting.asked[4:] == ["s0", "s1", "s2"]


class _Failing(_Plugin):
    @hookimpl
    def network_patches(self) -> None:
        raise RuntimeError("broken")


def test_a_plugin_that_fails_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its service adds nothing to the map, and the rest of the map is there."""
    maps = NetworkMaps(load_hooks([("failing", _Failing())]))
    account = snapshot(
        ALICE, BOB, PROXY, groups={"g": ["alice"]}, services=(service("s", "g", targets=(target(BOB, 80),)),)
    )
    assert names(maps.of(account, PROXY)) == {"bob"}
    assert "plugin.network_patches.failed" in caplog.text


@pytest.mark.parametrize(
    ("versions", "port"),
    [
        (("0.77.1", "development"), 22054),
        (("0.59.0", ""), 22054),
        (("ci-abc", "dev-1"), 22054),
        (("0.58.9", "0.77.1"), 5353),
        (("0.77.1", "nightly"), 5353),
    ],
)
def test_the_forwarders_port_is_that_of_the_oldest_agent(versions: tuple[str, ...], port: int) -> None:
    """One that is too old, or whose version nobody can read, decides for all; a peer without agent has no say."""
    assert (
        forwarder_port([peer(f"p{number}", "100.64.0.1", version=text) for number, text in enumerate(versions)]) == port
    )
