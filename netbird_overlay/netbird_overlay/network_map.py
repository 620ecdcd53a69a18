"""Reads management's network map into the engine's terms: our addresses, our peers and the inbound rules.

The functions are pure and err on the safe side: an ACCEPT rule that is not understood is left out, a DROP rule that is
not understood is widened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_address, ip_interface, ip_network

from netbird_overlay.engine import Rule
from netbird_overlay.members import Member, plain_address
from netbird_wire.envelope import BadKey, parse_key
from netbird_wire.management_pb2 import (
    ACCEPT,
    ALL,
    CUSTOM,
    ICMP,
    IN,
    NETBIRD_SSH,
    TCP,
    UDP,
    FirewallRule,
    NetworkMap,
    PeerConfig,
    RemotePeerConfig,
)

TCP_NUMBER = 6
ANY_SOURCE = ("0.0.0.0/0", "::/0")
ANY_PORT = (0, 65535)
IPV6_MIN_MTU, DEFAULT_MTU = 1280, 1280
MTU_RANGE = (576, 8192)


class MapError(ValueError):
    """The map contains no usable configuration of our own node."""


@dataclass(frozen=True, slots=True)
class OwnNode:
    """Our own node, as management configured it."""

    addresses: tuple[str, ...]
    mtu: int
    fqdn: str = ""


@dataclass(frozen=True, slots=True)
class Inbound:
    """Rules for flows that peers open: `denied` takes precedence over `allowed`; all other flows are denied."""

    allowed: tuple[Rule, ...] = ()
    denied: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Roster:
    """A map's peers. `members` is None if the map does not list peers; `skipped` counts peers that were left out."""

    members: tuple[Member, ...] | None
    skipped: int = 0


def read_own(config: PeerConfig) -> OwnNode:
    """Read our addresses (IPv4 first) and MTU. Raises MapError."""
    try:
        addresses = [str(ip_interface(config.address).ip)]
    except ValueError as exc:
        raise MapError(f"our own address {config.address!r} cannot be read") from exc
    mtu = min(max(config.mtu, MTU_RANGE[0]), MTU_RANGE[1]) if config.mtu > 0 else DEFAULT_MTU
    if config.address_v6 and mtu >= IPV6_MIN_MTU:
        if len(config.address_v6) != 17:
            raise MapError(f"our own IPv6 address has {len(config.address_v6)} bytes, not 17")
        addresses.append(str(ip_address(config.address_v6[:16])))
    return OwnNode(tuple(addresses), mtu, config.fqdn)


def read_roster(network_map: NetworkMap, own_key: bytes, own: OwnNode) -> Roster:
    """Read the remote peers, each with the addresses from which it alone may send.

    Only single addresses count (/32, /128): a route names the peer that carries packets, not the one that sent them. An
    address of two peers identifies neither, so both lose it.
    """
    if not network_map.remotePeers:
        return Roster(() if network_map.remotePeersIsEmpty else None)
    ipv6 = any(":" in address for address in own.addresses)
    skipped = 0
    members: dict[bytes, Member] = {}
    for peer in network_map.remotePeers:
        try:
            key = parse_key(peer.wgPubKey)
        except BadKey:
            skipped += 1
            continue
        if key == own_key:
            continue
        addresses = tuple(_single_addresses(peer, ipv6=ipv6, but=own.addresses))
        if not addresses or key in members:
            skipped += 1
            continue
        members[key] = Member(key, addresses, peer.fqdn)
    owners = Counter(address for member in members.values() for address in member.addresses)
    kept = []
    for member in members.values():
        addresses = tuple(address for address in member.addresses if owners[address] == 1)
        if addresses != member.addresses:
            skipped += 1
        if addresses:
            kept.append(Member(member.key, addresses, member.name))
    return Roster(tuple(kept), skipped)


def _single_addresses(peer: RemotePeerConfig, *, ipv6: bool, but: tuple[str, ...]) -> Iterator[str]:
    for text in dict.fromkeys(peer.allowedIps):
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            continue
        if network.prefixlen != network.max_prefixlen or (isinstance(network, IPv6Network) and not ipv6):
            continue
        address = plain_address(str(network.network_address))
        if address is not None and address not in but:
            yield address


def read_inbound(network_map: NetworkMap) -> Inbound:
    """Read the IN rules for TCP.

    Without rules nothing is admitted, also if an old server omits `firewallRulesIsEmpty` to allow everything.
    """
    allowed: dict[Rule, None] = {}
    denied: dict[Rule, None] = {}
    for rule in network_map.FirewallRules:
        if rule.Direction != IN:
            continue
        ports, sources = _ports(rule), _sources(rule)
        if rule.Action == ACCEPT:
            if rule.Protocol in (ALL, TCP) and ports is not None:
                allowed.update({(source, TCP_NUMBER, *ports): None for source in sources})
        elif rule.Protocol not in (UDP, ICMP, CUSTOM, NETBIRD_SSH):
            denied.update({(source, TCP_NUMBER, *(ports or ANY_PORT)): None for source in sources or ANY_SOURCE})
    return Inbound(tuple(allowed), tuple(denied))


def _sources(rule: FirewallRule) -> tuple[str, ...]:
    """Return the source prefixes; none if any is invalid. The unspecified address means all of its family."""
    prefixes = []
    try:
        for packed in rule.sourcePrefixes:
            if len(packed) not in (5, 17):
                return ()
            address = ip_address(packed[:-1])
            length = 0 if address.is_unspecified else packed[-1]
            prefixes.append(str(ip_network((address, length), strict=False)))
        if not rule.sourcePrefixes:
            address = ip_address(rule.PeerIP)
            prefixes.append(str(ip_network((address, 0 if address.is_unspecified else address.max_prefixlen))))
    except ValueError:
        return ()
    return tuple(prefixes)


def _ports(rule: FirewallRule) -> tuple[int, int] | None:
    """Return the first and last destination port; None if they are invalid."""
    if rule.HasField("PortInfo"):
        if rule.PortInfo.WhichOneof("portSelection") == "range":
            first, last = rule.PortInfo.range.start, rule.PortInfo.range.end
        else:
            first = last = rule.PortInfo.port
        if first or last:
            return (first, last) if 0 < first <= last < 65536 else None
    if rule.Port:
        if not (rule.Port.isascii() and rule.Port.isdigit()) or not 0 <= int(rule.Port) < 65536:
            return None
        if port := int(rule.Port):
            return port, port
    return ANY_PORT
