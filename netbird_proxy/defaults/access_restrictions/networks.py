"""Whether an address is in any of some networks: a look-up for each prefix length, however many networks there are."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from netbird_proxy.defaults.access_restrictions.settings import Network

Address = IPv4Address | IPv6Address


class Networks:
    """A set of networks. False where it is empty."""

    __slots__ = ("_by_length",)

    def __init__(self, networks: Iterable[Network]) -> None:
        by_length: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for one in networks:
            shift = one.max_prefixlen - one.prefixlen
            by_length[one.version].setdefault(shift, set()).add(int(one.network_address) >> shift)
        self._by_length = {
            version: tuple((shift, frozenset(found)) for shift, found in sorted(lengths.items()))
            for version, lengths in by_length.items()
        }

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(number >> shift in found for shift, found in self._by_length[address.version])

    def __bool__(self) -> bool:
        return any(self._by_length.values())
