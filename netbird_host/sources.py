"""Clients by address: the nearest untrusted address of a request, and the unit by which limits count clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def nearest_client(peer: str, forwarded: Iterable[str], trusted: Sequence[Network]) -> str:
    """Return the nearest address that does not belong to a trusted proxy.

    The entries of `forwarded`, the lines of `X-Forwarded-For` in order, are read from the right, only as far as trusted
    proxies wrote them; an entry that is not an address ends the search. Without entries the result is `peer`, the
    connection's own address; if all addresses are trusted, the leftmost.
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


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """True for the address of a trusted proxy; False for text that is no address."""
    parsed = _address(address)
    return parsed is not None and _among(parsed, trusted)


def _among(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return unmapped(address)


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address inside a v4-mapped IPv6 address (`::ffff:192.0.2.1`); any other address as it is."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def address_text(address: IPv4Address | IPv6Address) -> str:
    """Format an address canonically and alike on every Python: mapped IPv4 in mixed notation (RFC 5952, 5).

    Python before 3.13 writes `::ffff:7f00:1` where later ones write `::ffff:127.0.0.1`.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        zone = "" if address.scope_id is None else f"%{address.scope_id}"
        return f"::ffff:{address.ipv4_mapped}{zone}"
    return str(address)


def source_of(address: str) -> str:
    """Return the unit by which limits count a client: its IPv4 address, or its IPv6 /64, all of which one host can use.

    An address with a zone (`fe80::1%eth0`) counts by itself. Text that is not an address is returned as it is. The
    result has at most 255 characters.
    """
    return address[:255] if ":" not in address else _network_of(address[:255])


@lru_cache(4096)
def _network_of(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address) or parsed.scope_id is not None:
        return address
    return str(parsed.ipv4_mapped or f"{IPv6Address(int(parsed) >> 64 << 64)}/64")
