"""TURN's messages (RFC 8656) and the long-term credentials that protect them (RFC 8489 §9.2): a codec without state."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun.encoding import (
    COOKIE,
    HEADER,
    BadStun,
    address,
    attribute,
    integrity,
    looks_like_stun,
    masked,
    of_length,
)

UDP_TRANSPORT: Final = bytes((17, 0, 0, 0))
"""Value of REQUESTED-TRANSPORT."""
MAX_ATTRIBUTE_BYTES: Final = 763
"""Longest REALM, NONCE and reason (RFC 8489 §14.9, §14.10); longer ones make the message malformed."""
_FIRST_CHANNEL, _LAST_CHANNEL = 0x4000, 0x4FFF


class Method(IntEnum):
    """Methods of TURN."""

    ALLOCATE = 3
    REFRESH = 4
    SEND = 6
    DATA = 7
    CREATE_PERMISSION = 8
    CHANNEL_BIND = 9


class Class(IntEnum):
    """Classes of a message; the values are their bits in the first two bytes."""

    REQUEST = 0x000
    INDICATION = 0x010
    SUCCESS = 0x100
    ERROR = 0x110


class Attribute(IntEnum):
    """Attributes that this client writes or reads."""

    USERNAME = 0x0006
    INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    CHANNEL_NUMBER = 0x000C
    LIFETIME = 0x000D
    XOR_PEER_ADDRESS = 0x0012
    DATA = 0x0013
    REALM = 0x0014
    NONCE = 0x0015
    XOR_RELAYED_ADDRESS = 0x0016
    REQUESTED_TRANSPORT = 0x0019


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials and the server's values that sign a request.

    Attributes:
        key: `long_term_key` of user, realm and password.
    """

    user: str
    realm: bytes
    nonce: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TurnMessage:
    """A message.

    Attributes:
        transaction: 12 bytes.
        attributes: the values by number; of equal ones the first. MESSAGE-INTEGRITY and all behind it is left out.
        covered, digest: the bytes that MESSAGE-INTEGRITY covers, and its value; empty without one.
    """

    method: Method
    kind: Class
    transaction: bytes
    attributes: Mapping[int, bytes]
    covered: bytes = field(default=b"", compare=False, repr=False)
    digest: bytes = field(default=b"", compare=False, repr=False)

    def is_from(self, key: bytes) -> bool:
        """Return True if MESSAGE-INTEGRITY was made with this key. Without the attribute: False."""
        return bool(self.digest) and hmac.compare_digest(integrity(self.covered, key), self.digest)

    def endpoint(self, kind: Attribute) -> Endpoint:
        """Return the address of an XOR-…-ADDRESS.

        Raises:
            BadStun: the attribute is absent or malformed.
        """
        return address(self.attributes.get(kind, b""), COOKIE.to_bytes(4) + self.transaction)

    def lifetime(self) -> int:
        """Return LIFETIME in seconds.

        Raises:
            BadStun: the attribute is absent or malformed.
        """
        value = self.attributes.get(Attribute.LIFETIME, b"")
        if len(value) != 4:
            raise BadStun("LIFETIME is absent, or no number of 4 bytes")
        return int.from_bytes(value)

    def error(self) -> tuple[int, str]:
        """Return code and reason of an error, the reason without characters that a terminal would obey.

        Raises:
            BadStun: the attribute is absent or malformed.
        """
        value = self.attributes.get(Attribute.ERROR_CODE, b"")
        if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
            raise BadStun("ERROR-CODE is absent or out of range")
        reason = value[4:].decode("utf-8", "replace")[:64]
        return (value[2] & 7) * 100 + value[3], "".join(each if each.isprintable() else "?" for each in reason)


def long_term_key(user: str, realm: bytes, password: str) -> bytes:
    """Return the key of RFC 8489 §9.2.2 for the algorithm MD5, which every server takes."""
    text = user.encode() + b":" + realm + b":" + password.encode()
    return hashlib.md5(text, usedforsecurity=False).digest()


def parse_turn(datagram: bytes) -> TurnMessage:
    """Return the message that fills the datagram. Unknown attributes are kept and harm nobody.

    Raises:
        BadStun: for all else than a well-formed message of TURN.
    """
    if not looks_like_stun(datagram):
        raise BadStun("no STUN header")
    number, length, _, transaction = HEADER.unpack_from(datagram)
    if length % 4 or length != len(datagram) - HEADER.size:
        raise BadStun(f"length {length} in a datagram of {len(datagram)} bytes")
    try:
        method, kind = Method(number & 0xF | number >> 1 & 0x70 | number >> 2 & 0xF80), Class(number & 0x110)
    except ValueError:
        raise BadStun(f"type {number:#06x}") from None
    attributes: dict[int, bytes] = {}
    at = HEADER.size
    while at < len(datagram):
        name, size = struct.unpack_from("!HH", datagram, at)
        value = datagram[at + 4 : at + 4 + size]
        if len(value) != size or (size > MAX_ATTRIBUTE_BYTES and name != Attribute.DATA):
            raise BadStun(f"attribute {name:#06x} passes the end, or is too long")
        if name == Attribute.INTEGRITY:
            if size != 20:
                raise BadStun("MESSAGE-INTEGRITY of another length than 20")
            return TurnMessage(method, kind, transaction, attributes, datagram[:at], value)
        attributes.setdefault(name, value)
        at += 4 + size + -size % 4
    return TurnMessage(method, kind, transaction, attributes)


def encode_turn(
    method: Method,
    kind: Class,
    transaction: bytes,
    attributes: Mapping[Attribute, bytes],
    credentials: Credentials | None = None,
) -> bytes:
    """Return a message, signed if there are credentials."""
    number = kind | method & 0xF | (method & 0x70) << 1 | (method & 0xF80) << 2
    values = dict(attributes)
    if credentials is not None:
        values[Attribute.USERNAME] = credentials.user.encode()
        values[Attribute.REALM] = credentials.realm
        values[Attribute.NONCE] = credentials.nonce
    body = b"".join(attribute(name, value) for name, value in values.items())
    datagram = HEADER.pack(number, 0, COOKIE, transaction) + body
    if credentials is not None:
        datagram += attribute(Attribute.INTEGRITY, integrity(datagram, credentials.key))
    return of_length(datagram, len(datagram))


def peer_address(endpoint: Endpoint, transaction: bytes) -> bytes:
    """Return the value of XOR-PEER-ADDRESS."""
    return masked(endpoint, transaction)


# Channels --------------------------------------------------------------------------------------------------------


def is_channel_data(datagram: bytes) -> bool:
    """Return True for a datagram that begins like ChannelData."""
    return len(datagram) >= 4 and _FIRST_CHANNEL <= int.from_bytes(datagram[:2]) <= _LAST_CHANNEL


def channel_data(number: int, payload: bytes) -> bytes:
    """Return ChannelData, padded as streams want it and datagrams allow it (RFC 8656 §12.5)."""
    return struct.pack("!HH", number, len(payload)) + payload + bytes(-len(payload) % 4)


def parse_channel_data(datagram: bytes) -> tuple[int, bytes]:
    """Return number and payload.

    Raises:
        BadStun: the payload passes the end of the datagram.
    """
    number, size = struct.unpack_from("!HH", datagram)
    if 4 + size > len(datagram):
        raise BadStun("ChannelData passes the end")
    return number, datagram[4 : 4 + size]


def frame_length(head: bytes) -> int:
    """Return the length of a message in a stream that begins with these 4 bytes (RFC 8656 §3.1, §12.5).

    Raises:
        BadStun: neither a STUN message nor ChannelData begins like this, so the stream has lost its frames.
    """
    size = int.from_bytes(head[2:4])
    if is_channel_data(head):
        return 4 + size + -size % 4
    if head[0] < 4 and size % 4 == 0:
        return HEADER.size + size
    raise BadStun("neither STUN nor ChannelData in the stream")
