"""Whom a client's address stands for, where something is counted or shared out by client."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


def source_of(address: str) -> str:
    """The address itself, but for IPv6, where a host has a whole /64 to come from. What is no address stays as it is.

    At most 255 characters. An address on one link only (`fe80::1%eth0`) is one client's.
    """
    return address[:255] if ":" not in address else _network_of(address)


@lru_cache(4096)
def _network_of(address: str) -> str:
    try:
        found = ip_address(address)
    except ValueError:
        return address[:255]
    if not isinstance(found, IPv6Address) or found.scope_id is not None:
        return address[:255]
    return str(found.ipv4_mapped or f"{IPv6Address(int(found) >> 64 << 64)}/64")
