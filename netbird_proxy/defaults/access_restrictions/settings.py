"""What a mapping says about addresses. A list with an entry that cannot be used refuses the mapping: left out, the
entry would make an allow-list narrower at best, and no restriction at all at worst."""

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
        observes: the operator wants reputation watched, which nobody here does.
    """

    allowed: tuple[Network, ...] = ()
    blocked: tuple[Network, ...] = ()
    allowed_countries: frozenset[str] = frozenset()
    blocked_countries: frozenset[str] = frozenset()
    observes: bool = False

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        said = mapping.access_restrictions
        if said.crowdsec_mode not in ("", "off", "observe", "enforce"):
            raise ValueError(f"crowdsec_mode {said.crowdsec_mode!r} is none of off, observe, enforce")
        if said.crowdsec_mode == "enforce":
            raise ValueError("crowdsec_mode is enforce, and no plugin of this proxy knows anybody's reputation")
        return cls(
            allowed=_networks("allowed_cidrs", said.allowed_cidrs),
            blocked=_networks("blocked_cidrs", said.blocked_cidrs),
            allowed_countries=_countries("allowed_countries", said.allowed_countries),
            blocked_countries=_countries("blocked_countries", said.blocked_countries),
            observes=said.crowdsec_mode == "observe",
        )

    @property
    def by_country(self) -> bool:
        return bool(self.allowed_countries or self.blocked_countries)

    def __bool__(self) -> bool:
        """Whether anybody is kept out."""
        return bool(self.allowed or self.blocked or self.by_country)


def _networks(field: str, entries: Iterable[str]) -> tuple[Network, ...]:
    return tuple(_network(field, entry) for entry in entries)


def _network(field: str, entry: str) -> Network:
    """A network, host bits cut; one of v4-mapped addresses as the IPv4 network that it is."""
    _, slash, length = entry.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdigit()):
            raise ValueError("no prefix length")
        found = ip_network(entry, strict=False)
    except ValueError as error:
        raise ValueError(f"{field}: {entry!r} is not a network") from error
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        mapped = found.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), found.prefixlen - 96))
    return found


def _countries(field: str, entries: Iterable[str]) -> frozenset[str]:
    codes = [entry.upper() for entry in entries]
    for code in codes:
        if not _COUNTRY.fullmatch(code):
            raise ValueError(f"{field}: {code!r} is not a country's two letters")
    return frozenset(codes)
