"""Peers of an overlay by key, and the one spelling of their addresses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class Member:
    """One remote peer.

    Attributes:
        key: the 32 bytes of its public key.
        addresses: the overlay addresses that it alone may send from, without prefix lengths, in canonical spelling.
        name: for people only.
    """

    key: bytes
    addresses: tuple[str, ...]
    name: str = ""


@lru_cache(maxsize=4096)
def plain_address(text: str) -> str | None:
    """An IP literal in its canonical spelling, v4-mapped ones unmapped; None for anything else, zones included."""
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
