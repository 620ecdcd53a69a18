"""Reads management's network map into the engine's terms: our addresses, our peers and the inbound rules.

The functions are pure and err on the safe side: an ACCEPT rule that is not understood is left out, a DROP rule that is
not understood is widened.

Rules are judged in the order of NetBird's agents: DROP rules for a source, ACCEPT rules for that source, then rules for
any source. Of an ACCEPT rule they read the address of the first source prefix alone, and ignore its length; so does
this module, which therefore admits no source that an agent would not admit. A DROP rule counts for its whole prefixes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network

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

TCP_NUMBER, UDP_NUMBER, ECHO_NUMBER = 6, 17, 1
NUMBERS = (TCP_NUMBER, UDP_NUMBER, ECHO_NUMBER)
"""The IP protocols that rules concern. The last stands for echo requests of both families, which have no ports."""
ANY_SOURCE = ("0.0.0.0/0", "::/0")
ANY_PORT = (0, 65535)
NO_PORT = (0, 0)
IPV6_MIN_MTU, DEFAULT_MTU = 1280, 1280
MTU_RANGE = (576, 8192)


class MapError(ValueError):
    """The map contains no usable configuration of our own node."""


@dataclass(frozen=True, slots=True)
class OwnNode:
    """Our own node, as management configured it. `lazy`: peers may sleep until a connection needs them."""

    addresses: tuple[str, ...]
    mtu: int
    fqdn: str = ""
    lazy: bool = False


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
        if "%" in config.address:
            raise ValueError("an overlay address has no zone")
        addresses = [_own_address(ip_interface(config.address).ip)]
    except ValueError as exc:
        raise MapError(f"our own address {config.address!r} cannot be read") from exc
    mtu = min(max(config.mtu, MTU_RANGE[0]), MTU_RANGE[1]) if config.mtu > 0 else DEFAULT_MTU
    if ":" in addresses[0] and mtu < IPV6_MIN_MTU:
        raise MapError(f"our own address {addresses[0]} needs an MTU of {IPV6_MIN_MTU}, not {mtu}")
    if config.address_v6 and mtu >= IPV6_MIN_MTU:
        if len(config.address_v6) != 17:
            raise MapError(f"our own IPv6 address has {len(config.address_v6)} bytes, not 17")
        try:
            addresses.append(_own_address(IPv6Address(config.address_v6[:16])))
        except ValueError as exc:
            raise MapError("our own IPv6 address cannot be used") from exc
    return OwnNode(tuple(addresses), mtu, config.fqdn, config.LazyConnectionEnabled)


def _own_address(address: IPv4Address | IPv6Address) -> str:
    """Return an address that a node can have. Raises ValueError."""
    if (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or _plain(address) != address
        or address == IPv4Address(2**32 - 1)
    ):
        raise ValueError(f"{address} is not an address that a node can have")
    return str(address)


def read_networks(config: PeerConfig) -> tuple[IPv4Network | IPv6Network, ...]:
    """Read the networks of the overlay, from which no address outside can be. Unreadable ones are left out."""
    texts = [config.address]
    if len(config.address_v6) == 17:
        texts.append(f"{ip_address(config.address_v6[:16])}/{config.address_v6[16]}")
    networks = []
    for text in texts:
        with suppress(ValueError):
            networks.append(ip_interface(text).network)
    return tuple(networks)


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
        members[key] = Member(key, addresses, peer.fqdn, peer.agentVersion)
    owners = Counter(address for member in members.values() for address in member.addresses)
    kept = []
    for member in members.values():
        addresses = tuple(address for address in member.addresses if owners[address] == 1)
        if addresses != member.addresses:
            skipped += 1
        if addresses:
            kept.append(replace(member, addresses=addresses))
    return Roster(tuple(kept), skipped)


def read_offline(network_map: NetworkMap) -> dict[str, str]:
    """Return the addresses of the account's peers that are away, each with the peer's name."""
    return {
        address: peer.fqdn
        for peer in network_map.offlinePeers
        for address in _single_addresses(peer, ipv6=True, but=())
    }


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
    """Read the IN rules for TCP, UDP and echo requests.

    Without rules nothing is admitted, also if an old server omits `firewallRulesIsEmpty` to allow everything.
    """
    allowed: dict[Rule, None] = {}
    denied: dict[Rule, None] = {}
    generally_allowed: list[Rule] = []
    generally_denied: list[Rule] = []
    for rule in network_map.FirewallRules:
        if rule.Direction != IN:
            continue
        ports = _ports(rule)
        if rule.Action == ACCEPT:
            source = _first_source(rule)
            if source is None or ports is None:
                continue
            rules = [
                (source, number, *(ports if number != ECHO_NUMBER else NO_PORT)) for number in _accepted(rule, ports)
            ]
            if source in ANY_SOURCE:
                generally_allowed += rules
            else:
                allowed.update(dict.fromkeys(rules))
            continue
        sources = _sources(rule)
        for number in _dropped(rule):
            first, last = NO_PORT if number == ECHO_NUMBER else ports or ANY_PORT
            if not sources:  # not understood: for every source, also against its own ACCEPT rules
                denied.update(dict.fromkeys((source, number, first, last) for source in ANY_SOURCE))
            for source in sources:
                if source in ANY_SOURCE:
                    generally_denied.append((source, number, first, last))
                else:
                    denied[source, number, first, last] = None
    for general in generally_allowed:
        allowed.update(dict.fromkeys(_without(general, generally_denied)))
    return Inbound(tuple(allowed), tuple(denied))


def _accepted(rule: FirewallRule, ports: tuple[int, int]) -> tuple[int, ...]:
    """Return the protocols that an ACCEPT rule surely means."""
    if rule.Protocol == ALL:
        return NUMBERS if ports == ANY_PORT else (TCP_NUMBER, UDP_NUMBER)
    return {TCP: (TCP_NUMBER,), UDP: (UDP_NUMBER,), ICMP: (ECHO_NUMBER,)}.get(rule.Protocol, ())


def _dropped(rule: FirewallRule) -> tuple[int, ...]:
    """Return the protocols that a DROP rule may mean."""
    if rule.Protocol == CUSTOM:
        number = {58: ECHO_NUMBER}.get(rule.customProtocol, rule.customProtocol)
        return (number,) if number in NUMBERS else ()
    surely = {TCP: (TCP_NUMBER,), UDP: (UDP_NUMBER,), ICMP: (ECHO_NUMBER,), NETBIRD_SSH: ()}
    return surely.get(rule.Protocol, NUMBERS)


def _without(rule: Rule, denied: list[Rule]) -> Iterator[Rule]:
    """Yield what remains of a rule for any source after the prohibitions for any source."""
    source, number, first, last = rule
    for start, end in sorted((other[2], other[3]) for other in denied if other[:2] == (source, number)):
        if first > last:
            return
        if first < start:
            yield source, number, first, min(start - 1, last)
        first = max(first, end + 1)
    if first <= last:
        yield source, number, first, last


def _first_source(rule: FirewallRule) -> str | None:
    """Return the single address of an ACCEPT rule as a prefix, or any source; None if a source is invalid."""
    sources = _sources(rule)
    if not sources or sources[0] in ANY_SOURCE:
        return sources[0] if sources else None
    return str(ip_network(_plain(ip_address(rule.sourcePrefixes[0][:-1] if rule.sourcePrefixes else rule.PeerIP))))


def _sources(rule: FirewallRule) -> tuple[str, ...]:
    """Return the source prefixes; none if any is invalid. The unspecified address means all of its family."""
    prefixes = []
    try:
        for packed in rule.sourcePrefixes:
            if len(packed) not in (5, 17):
                return ()
            prefixes.append(_prefix(ip_address(packed[:-1]), packed[-1]))
        if not rule.sourcePrefixes:
            address = ip_address(rule.PeerIP)
            prefixes.append(_prefix(address, address.max_prefixlen))
    except ValueError:
        return ()
    return tuple(prefixes)


def _prefix(address: IPv4Address | IPv6Address, length: int) -> str:
    plain = _plain(address)
    if length > address.max_prefixlen:
        raise ValueError("the prefix is longer than its address")
    length = max(0, length - (address.max_prefixlen - plain.max_prefixlen))
    return str(ip_network((plain, 0 if plain.is_unspecified else length), strict=False))


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an address as packets inside the tunnel have it: IPv4-mapped as IPv4. ValueError for one with a zone."""
    if not isinstance(address, IPv6Address):
        return address
    if address.scope_id is not None:
        raise ValueError("an overlay address has no zone")
    return address.ipv4_mapped or address


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
