"""Members of an overlay, the canonical spelling of their addresses, and the credentials of their ICE sessions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class Member:
    """One remote peer.

    Attributes:
        key: the 32 bytes of its public key.
        addresses: the overlay addresses from which only this peer may send, without prefix lengths, canonical.
        name: a label for people; never used for decisions.
        version: of the peer's agent, as it reports it; "" for a stock WireGuard client.
    """

    key: bytes
    addresses: tuple[str, ...]
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class IceCredentials:
    """The user name and password with which one side of an ICE session authenticates its checks (RFC 8445)."""

    ufrag: str
    pwd: str = field(repr=False)


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


def is_special(address: str) -> bool:
    """True for an address literal of this host, of its link (with cloud providers' metadata services) or of a group.

    What others name must not lead there.
    """
    parsed = ip_address(address)
    return parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified
