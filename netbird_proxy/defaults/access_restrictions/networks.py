"""Sets of networks: a membership test costs one look-up for each prefix length, for any number of networks."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from netbird_proxy.defaults.access_restrictions.settings import Network

Address = IPv4Address | IPv6Address


class Networks:
    """A set of networks. False if empty."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[Network]) -> None:
        by_length: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            by_length[network.version].setdefault(shift, set()).add(int(network.network_address) >> shift)
        self._by_length = {
            version: tuple((shift, frozenset(numbers)) for shift, numbers in sorted(lengths.items()))
            for version, lengths in by_length.items()
        }

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in numbers for shift, numbers in self._by_length[address.version])

    def __bool__(self) -> bool:
        return any(self._by_length.values())
