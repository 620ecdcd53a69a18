"""Access restrictions of a mapping. An invalid entry refuses the mapping: without it, an allow-list might be empty and
restrict nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self

from netbird_wire.proxy_service_pb2 import ProxyMapping

Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
_COUNTRY = re.compile(r"[A-Z]{2}")


@dataclass(frozen=True, slots=True)
class RestrictionSettings:
    """Empty lists restrict nothing.

    Attributes:
        observes: crowdsec_mode is observe, which this proxy does not support.
    """

    allowed: tuple[Network, ...] = ()
    blocked: tuple[Network, ...] = ()
    allowed_countries: frozenset[str] = frozenset()
    blocked_countries: frozenset[str] = frozenset()
    observes: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        restrictions = mapping.access_restrictions
        if restrictions.crowdsec_mode not in ("", "off", "observe", "enforce"):
            raise ValueError(f"crowdsec_mode {restrictions.crowdsec_mode!r} must be off, observe or enforce")
        if restrictions.crowdsec_mode == "enforce":
            raise ValueError("crowdsec_mode is enforce, which this proxy does not support")
        return cls(
            allowed=_networks("allowed_cidrs", restrictions.allowed_cidrs),
            blocked=_networks("blocked_cidrs", restrictions.blocked_cidrs),
            allowed_countries=_countries("allowed_countries", restrictions.allowed_countries),
            blocked_countries=_countries("blocked_countries", restrictions.blocked_countries),
            observes=restrictions.crowdsec_mode == "observe",
        )

    @property
    def by_country(self) -> bool:
        return bool(self.allowed_countries or self.blocked_countries)

    def __bool__(self) -> bool:
        """Return whether any list restricts access."""
        return bool(self.allowed or self.blocked or self.by_country)


def _networks(field: str, entries: Iterable[str]) -> tuple[Network, ...]:
    return tuple(_network(field, entry) for entry in entries)


def _network(field: str, entry: str) -> Network:
    """Parse a network, without host bits. A network of v4-mapped addresses becomes the IPv4 network."""
    _, slash, length = entry.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdigit()):
            raise ValueError("no prefix length")
        network = ip_network(entry, strict=False)
    except ValueError as error:
        raise ValueError(f"{field}: {entry!r} is not a network") from error
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - 96))
    return network


def _countries(field: str, entries: Iterable[str]) -> frozenset[str]:
    codes = [entry.upper() for entry in entries]
    for code in codes:
        if not _COUNTRY.fullmatch(code):
            raise ValueError(f"{field}: {code!r} must be a country code of two letters")
    return frozenset(codes)
