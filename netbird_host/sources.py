"""Whom a client's address stands for, where something is counted or shared out by client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def nearest_client(peer: str, forwarded: Iterable[str], trusted: Sequence[Network]) -> str:
    """The nearest address that is no trusted proxy's; `peer`, the connection's own, where no other is named.

    `forwarded` are the lines of `X-Forwarded-For`, in their order. They are read from the right, and only as far as
    trusted proxies wrote them: an entry that is no address ends the search. Where all of them are trusted it is the
    leftmost.
    """
    address = _address(peer)
    if address is None or not _among(address, trusted):
        return peer
    for entry in reversed(",".join(forwarded).split(",")):
        entered = _address(entry.strip())
        if entered is None:
            break
        address = entered
        if not _among(address, trusted):
            break
    return str(address)


def _among(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def address_text(address: IPv4Address | IPv6Address) -> str:
    """The canonical text of an address, the same on every Python: mapped IPv4 in mixed notation (RFC 5952, 5).

    Python before 3.13 writes `::ffff:7f00:1` where later ones write `::ffff:127.0.0.1`.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        zone = "" if address.scope_id is None else f"%{address.scope_id}"
        return f"::ffff:{address.ipv4_mapped}{zone}"
    return str(address)


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
