"""DNS zones for a peer's resolver: names of the peers that it may reach, and names of services for its groups."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from netbird_management.model.accounts import Peer
from netbird_management.model.ids import GroupId
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.steps import DnsRecord
from netbird_wire.management_pb2 import (
    CustomZone,
    NameServer,
    NameServerGroup,
    PeerCapabilityIPv6Overlay,
    SimpleRecord,
)

PEER_TTL = 300
A, CNAME, AAAA = 1, 5, 28
_TYPES = {"A": A, "CNAME": CNAME, "AAAA": AAAA}


def fqdn(peer: Peer, account: AccountSnapshot) -> str:
    return f"{peer.dns_label}.{account.account.dns_domain}"


def has_ipv6(peer: Peer) -> bool:
    """True if the peer also uses IPv6 in the overlay: its agent reports support, or it runs plain WireGuard, which uses
    the addresses of its file."""
    return peer.ipv6 is not None and (peer.stock or PeerCapabilityIPv6Overlay in peer.meta.capabilities)


def addresses_between(peer: Peer, other: Peer) -> tuple[IPv4Address | IPv6Address, ...]:
    """The addresses of `other` between these two peers: IPv6 only if both use it."""
    if other.ipv6 is not None and has_ipv6(peer) and has_ipv6(other):
        return (other.ip, other.ipv6)
    return (other.ip,)


def peers_zone(viewer: Peer, others: Iterable[Peer], account: AccountSnapshot) -> CustomZone:
    """The account's zone for one peer: its own name and the names of the peers that it may reach."""
    zone = CustomZone(Domain=account.account.dns_domain + ".")
    for peer in (viewer, *others):
        for label in (peer.dns_label, *peer.extra_dns_labels):
            name = f"{label}.{account.account.dns_domain}"
            zone.Records.append(_record(name, A, str(peer.ip), PEER_TTL))
            if has_ipv6(viewer) and has_ipv6(peer):
                zone.Records.append(_record(name, AAAA, str(peer.ipv6), PEER_TTL))
    zone.Records.sort(key=lambda record: (record.Name, record.Type, record.RData))
    return zone


def user_zones(groups: frozenset[GroupId], account: AccountSnapshot) -> list[CustomZone]:
    """The operator's zones for the viewer's groups; other names under their domains still resolve normally."""
    return [
        CustomZone(
            Domain=zone.domain + ".",
            SearchDomainDisabled=not zone.enable_search_domain,
            NonAuthoritative=True,
            Records=[
                _record(
                    record.name + ".",
                    _TYPES[record.type],
                    record.content + "." if record.type == "CNAME" else record.content,
                    record.ttl,
                )
                for record in zone.records
            ],
        )
        for zone in account.dns.zones
        if zone.enabled and zone.records and groups.intersection(zone.distribution_groups)
    ]


def nameserver_groups(groups: frozenset[GroupId], account: AccountSnapshot) -> list[NameServerGroup]:
    return [
        NameServerGroup(
            NameServers=[NameServer(IP=server.ip, NSType=1, Port=server.port) for server in group.nameservers],
            Primary=group.primary,
            Domains=group.domains,
            SearchDomainsEnabled=group.search_domains_enabled,
        )
        for group in account.dns.nameservers
        if group.enabled and groups.intersection(group.groups)
    ]


def service_zones(viewer: Peer, records: Iterable[DnsRecord], account: AccountSnapshot) -> list[CustomZone]:
    """The zones of the services' records for the viewer's groups, ordered by name; all of them for a proxy's peer that
    answers queries of others.

    They are non-authoritative, so that other names under the apex still resolve normally, and no search domains, as no
    operator requested one.
    """
    groups = frozenset(group.id for group in account.groups_of(viewer.id))
    answers_others = viewer.proxy is not None and viewer.proxy.serves_dns
    if not groups and not answers_others:
        return []  # a proxy's peer is in no group; the loop over thousands of services would find nothing
    zones: dict[str, set[tuple[str, str, int]]] = {}
    for record in records:
        if answers_others or record.groups & groups:
            zones.setdefault(record.zone, set()).add((record.name, record.address, record.ttl))
    return [
        CustomZone(
            Domain=apex + ".",
            SearchDomainDisabled=True,
            NonAuthoritative=True,
            Records=[_record(name + ".", A, address, ttl) for name, address, ttl in sorted(zones[apex])],
        )
        for apex in sorted(zones)
    ]


def _record(name: str, kind: int, address: str, ttl: int) -> SimpleRecord:
    return SimpleRecord(Name=name, Type=kind, Class="IN", TTL=ttl, RData=address)
