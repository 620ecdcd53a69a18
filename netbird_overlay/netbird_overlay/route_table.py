"""Prefixes and the peers that carry their packets, looked up by the longest matching prefix."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


class RouteTable:
    """An immutable table of routes.

    Args:
        routes: canonical prefixes, such as `10.0.0.0/8`, with the key of the peer that carries each.

    Raises:
        ValueError: a prefix is invalid or has host bits.
    """

    def __init__(self, routes: Mapping[str, bytes] | None = None) -> None:
        self.routes: dict[str, bytes] = dict(routes or {})
        self._lengths: dict[int, list[int]] = {4: [], 6: []}
        self._carriers: dict[tuple[int, int, int], bytes] = {}
        for prefix, key in self.routes.items():
            network = ip_network(prefix)
            lengths = self._lengths[network.version]
            if network.prefixlen not in lengths:
                lengths.append(network.prefixlen)
            self._carriers[network.version, network.prefixlen, int(network.network_address)] = key
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)

    def __len__(self) -> int:
        return len(self.routes)

    def carrier(self, address: str) -> bytes | None:
        """Return the key of the peer that carries packets to an address literal, or None."""
        literal = ip_address(address)
        number, bits = int(literal), literal.max_prefixlen
        for length in self._lengths[literal.version]:
            key = self._carriers.get((literal.version, length, number >> (bits - length) << (bits - length)))
            if key is not None:
                return key
        return None

    def by_carrier(self) -> dict[bytes, tuple[str, ...]]:
        """Return each carrier's prefixes."""
        prefixes: dict[bytes, list[str]] = {}
        for prefix, key in self.routes.items():
            prefixes.setdefault(key, []).append(prefix)
        return {key: tuple(listed) for key, listed in prefixes.items()}
