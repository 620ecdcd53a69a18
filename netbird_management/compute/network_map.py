"""Network maps: the peers, firewall rules, routes and DNS names of one peer, computed from the account's snapshot.

The resolved rules of each account's latest snapshot are kept (`account_rules`), so a change recomputes only the touched
services, and all peers share one computation.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from netbird_management.compute.account_rules import AccountRules, Resolved
from netbird_management.compute.agent_versions import is_since
from netbird_management.compute.routes import answers_names, routes_of
from netbird_management.compute.target_policies import target_policies
from netbird_management.compute.wire_rules import PORTED, PROTOCOLS
from netbird_management.compute.zones import (
    addresses_between,
    fqdn,
    has_ipv6,
    nameserver_groups,
    peers_zone,
    service_zones,
    user_zones,
)
from netbird_management.model.accounts import Peer, PolicyRule
from netbird_management.model.admission import has_expired_login
from netbird_management.model.ids import AccountId, PeerId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import Hooks
from netbird_management.plugins.steps import DnsRecord, NetworkPatch
from netbird_wire.management_pb2 import (
    ACCEPT,
    DROP,
    IN,
    OUT,
    AutoUpdateSettings,
    DNSConfig,
    FirewallRule,
    NetworkMap,
    PeerConfig,
    PortInfo,
    RemotePeerConfig,
    RuleDirection,
    SSHAuth,
    SSHConfig,
)

_PORT_RANGES_SINCE: Final = (0, 48, 0)


class NetworkMaps:
    """Computes network maps and caches the resolved rules of each account. Belongs to one event loop."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._accounts: dict[AccountId, AccountRules] = {}

    def forget(self, account_id: AccountId) -> None:
        """Drops the cached rules of a deleted account."""
        self._accounts.pop(account_id, None)

    def of(self, account: AccountSnapshot, peer: Peer) -> NetworkMap:
        """The complete map of a peer of this account; each empty list has its "is empty" flag set."""
        account_rules = self._rules_of(account)
        remote: dict[PeerId, Peer] = {}
        offline: dict[PeerId, Peer] = {}
        rules: dict[tuple[object, ...], FirewallRule] = {}
        for resolved in account_rules.rules():
            for other, direction in _connections(peer, resolved):
                if has_expired_login(other, account.account):
                    offline[other.id] = other
                    continue
                if resolved.rule.action != "drop":
                    remote[other.id] = other
                for key, rule in _firewall_rules(peer, other, resolved.rule, direction):
                    rules.setdefault(key, rule)
        routes = routes_of(peer, account_rules.routed())
        remote |= routes.others
        others = sorted(remote.values(), key=_by_label)
        return NetworkMap(
            Serial=account.account.serial,
            peerConfig=peer_config(account, peer),
            remotePeers=[_remote(peer, other, account) for other in others],
            remotePeersIsEmpty=not others,
            offlinePeers=[_remote(peer, other, account) for other in sorted(offline.values(), key=_by_label)],
            DNSConfig=_dns(peer, others, account, account_rules.records(), account_rules.forwarder_port),
            FirewallRules=rules.values(),
            firewallRulesIsEmpty=not rules,
            Routes=routes.routes.values(),
            routesFirewallRules=routes.rules,
            # Without the flag, agents assume an old server and let routed packets pass.
            routesFirewallRulesIsEmpty=not routes.rules,
            sshAuth=SSHAuth(UserIDClaim="sub"),
        )

    def _rules_of(self, account: AccountSnapshot) -> AccountRules:
        cached = self._accounts.get(account.account.id)
        if cached is None or not cached.follow(account):
            cached = self._accounts[account.account.id] = AccountRules(account, self._patch, cached)
        return cached

    def _patch(self, service: Service, account: AccountSnapshot) -> NetworkPatch:
        """The policies that a service needs, with the policies and records that plugins add for it."""
        added = self._hooks.network_patches(service, account)
        return NetworkPatch(
            policies=(*target_policies(service, account), *(policy for patch in added for policy in patch.policies)),
            records=tuple(record for patch in added for record in patch.records),
        )


def _by_label(peer: Peer) -> tuple[str, str]:
    return peer.dns_label, peer.id


def _dns(
    peer: Peer, others: list[Peer], account: AccountSnapshot, records: Iterable[DnsRecord], forwarder_port: int
) -> DNSConfig:
    groups = frozenset(group.id for group in account.groups_of(peer.id))
    if groups.intersection(account.account.settings.disabled_management_groups):
        return DNSConfig(ServiceEnable=False, ForwarderPort=forwarder_port)
    return DNSConfig(
        ServiceEnable=True,
        NameServerGroups=nameserver_groups(groups, account),
        CustomZones=[
            peers_zone(peer, others, account),
            *user_zones(groups, account),
            *service_zones(peer, records, account),
        ],
        ForwarderPort=forwarder_port,
    )


def peer_config(account: AccountSnapshot, peer: Peer) -> PeerConfig:
    """The peer's own configuration: its addresses, its name and the account's settings for it."""
    settings = account.account.settings
    config = PeerConfig(
        address=f"{peer.ip}/{account.account.network.prefixlen}",
        sshConfig=SSHConfig(),
        fqdn=fqdn(peer, account),
        RoutingPeerDnsResolutionEnabled=settings.routing_peer_dns_resolution_enabled
        or peer.proxy is not None
        or answers_names(peer, account),
        LazyConnectionEnabled=settings.lazy_connection_enabled,
        autoUpdate=AutoUpdateSettings(version="disabled"),
    )
    if has_ipv6(peer) and peer.ipv6 is not None:
        config.address_v6 = peer.ipv6.packed + bytes([account.account.network_v6.prefixlen])
    return config


def _connections(peer: Peer, resolved: Resolved) -> Iterator[tuple[Peer, "RuleDirection.ValueType"]]:
    """The other peers that the rule concerns, with the direction in which connections are opened, seen from `peer`."""
    both = resolved.rule.bidirectional
    if peer.id in resolved.sources:
        for other in resolved.destinations.values():
            if other.id != peer.id:
                yield other, OUT
                if both:
                    yield other, IN
    if peer.id in resolved.destinations:
        for other in resolved.sources.values():
            if other.id != peer.id:
                yield other, IN
                if both:
                    yield other, OUT


def _firewall_rules(
    peer: Peer, other: Peer, rule: PolicyRule, direction: "RuleDirection.ValueType"
) -> Iterator[tuple[tuple[object, ...], FirewallRule]]:
    """Firewall rules for packets between two peers, each with a key. Equal rules of several policies have equal keys,
    so that a map contains them once."""
    action = DROP if rule.action == "drop" else ACCEPT
    protocol = PROTOCOLS[rule.protocol]
    for address in addresses_between(peer, other):
        for port, port_info in _ports(peer, rule):
            wire = FirewallRule(
                PeerIP=str(address),
                Direction=direction,
                Action=action,
                Protocol=protocol,
                Port=port,
                PolicyID=rule.id.encode(),
                sourcePrefixes=[address.packed + bytes([address.max_prefixlen])],
            )
            if port_info is not None:
                wire.PortInfo.CopyFrom(port_info)
            ports = (port_info.range.start, port_info.range.end) if port_info is not None else None
            yield (address, direction, action, protocol, port, ports), wire


def _ports(peer: Peer, rule: PolicyRule) -> Iterator[tuple[str, PortInfo | None]]:
    if rule.protocol not in PORTED:
        yield "", None
    elif rule.ports:
        yield from ((str(port), None) for port in rule.ports)
    elif rule.port_ranges:
        for ports in rule.port_ranges:
            if _supports_ranges(peer):
                yield "", PortInfo(range=PortInfo.Range(start=ports.start, end=ports.end))
            elif ports.start == ports.end:
                yield str(ports.start), None
    else:
        yield "", PortInfo(range=PortInfo.Range())


def _supports_ranges(peer: Peer) -> bool:
    """True if the peer's agent supports port ranges. A version that is not numeric is a development build."""
    return is_since(peer.meta.netbird_version, _PORT_RANGES_SINCE, other=True)


def _remote(peer: Peer, other: Peer, account: AccountSnapshot) -> RemotePeerConfig:
    return RemotePeerConfig(
        wgPubKey=other.key,
        allowedIps=[f"{address}/{address.max_prefixlen}" for address in addresses_between(peer, other)],
        sshConfig=SSHConfig(sshPubKey=other.ssh_key.encode()),
        fqdn=fqdn(other, account),
        agentVersion=other.meta.netbird_version,
    )
