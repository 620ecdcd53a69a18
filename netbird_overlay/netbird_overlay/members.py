"""Members of an overlay, and the canonical spelling of their addresses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class Member:
    """One remote peer.

    Attributes:
        key: the 32 bytes of its public key.
        addresses: the overlay addresses from which only this peer may send, without prefix lengths, canonical.
        name: a label for people; never used for decisions.
    """

    key: bytes
    addresses: tuple[str, ...]
    name: str = ""


@lru_cache(maxsize=4096)
def plain_address(text: str) -> str | None:
    """Return an IP literal in canonical spelling, IPv4-mapped IPv6 as IPv4. None for all else, zones included."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return str(address)
