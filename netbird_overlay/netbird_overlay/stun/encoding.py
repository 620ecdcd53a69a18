"""The parts of STUN's encoding (RFC 8489) that binding and TURN share: header, attributes, addresses, integrity."""

from __future__ import annotations

import binascii
import hmac
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.errors import OverlayError
from netbird_overlay.members import plain_address

COOKIE: Final = 0x2112A442
HEADER: Final = struct.Struct("!HHI12s")
"""Method and class, length of the rest, cookie, transaction."""
_FINGERPRINT_MASK: Final = 0x5354554E


class BadStun(OverlayError):
    """The datagram is no STUN message of the method that the reader serves, or a malformed one."""


def looks_like_stun(datagram: bytes) -> bool:
    """Return True for the two zero bits and the magic cookie; WireGuard's messages never have both."""
    return len(datagram) >= 20 and datagram[0] < 4 and datagram[4:8] == COOKIE.to_bytes(4)


def address(value: bytes, mask: bytes) -> Endpoint:
    """Return the address of an attribute's value.

    Args:
        mask: 16 bytes that the value is XORed with: cookie and transaction, or zeros for MAPPED-ADDRESS.

    Raises:
        BadStun: an unknown family, or another length than the family's.
    """
    family = value[1] if len(value) >= 4 else 0
    if len(value) != {1: 8, 2: 20}.get(family):
        raise BadStun("an address of unknown family or wrong length")
    port = int.from_bytes(value[2:4]) ^ int.from_bytes(mask[:2])
    packed = bytes(byte ^ key for byte, key in zip(value[4:], mask, strict=False))
    host = IPv4Address(packed) if family == 1 else IPv6Address(packed)
    return Endpoint(plain_address(str(host)) or str(host), port)


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute with its padding."""
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def masked(endpoint: Endpoint, transaction: bytes) -> bytes:
    """Return the value of an XOR-…-ADDRESS."""
    host = ip_address(endpoint.host)
    mask = COOKIE.to_bytes(4) + transaction
    packed = bytes(byte ^ key for byte, key in zip(host.packed, mask, strict=False))
    return struct.pack("!BBH", 0, 1 if host.version == 4 else 2, endpoint.port ^ COOKIE >> 16) + packed


def of_length(datagram: bytes, end: int) -> bytes:
    """Return the datagram with the length that it has if it ends at `end`."""
    return datagram[:2] + (end - HEADER.size).to_bytes(2) + datagram[4:]


def integrity(before: bytes, key: bytes) -> bytes:
    """Return the value of a MESSAGE-INTEGRITY that follows these bytes."""
    return hmac.digest(key, of_length(before, len(before) + 24), "sha1")


def fingerprint(before: bytes) -> int:
    """Return the value of a FINGERPRINT that follows these bytes."""
    return binascii.crc32(of_length(before, len(before) + 8)) ^ _FINGERPRINT_MASK
