"""STUN messages (RFC 8489) as ICE uses them: one datagram in, one message out, and back.

Binding is the only method. NetBird's agents append attribute 0x8100 after FINGERPRINT, so MESSAGE-INTEGRITY and
FINGERPRINT are judged over the message as it was when they were made: up to the attribute, with a length that ends
there.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.stun.encoding import (
    COOKIE,
    HEADER,
    BadStun,
    address,
    attribute,
    fingerprint,
    integrity,
    looks_like_stun,
    masked,
    of_length,
)

_MAPPED_ADDRESS, _USERNAME, _INTEGRITY, _ERROR_CODE = 0x0001, 0x0006, 0x0008, 0x0009
_XOR_MAPPED_ADDRESS, _PRIORITY, _USE_CANDIDATE = 0x0020, 0x0024, 0x0025
_FINGERPRINT, _CONTROLLED, _CONTROLLING, _CANDIDATE_IDS = 0x8028, 0x8029, 0x802A, 0x8100
MAX_TEXT_BYTES: Final = 512
"""Longest USERNAME (RFC 8489 §14.3 allows 508 bytes) and 0x8100; longer ones make the message malformed."""


class Kind(IntEnum):
    """Method and class of a message: the first two bytes."""

    REQUEST = 0x0001
    INDICATION = 0x0011
    SUCCESS = 0x0101
    ERROR = 0x0111


@dataclass(frozen=True, slots=True)
class Message:
    """One binding message.

    Attributes:
        transaction: 12 bytes.
        priority: 0 to 2**32 - 1, of the candidate that the sender of the request would discover.
        controlling, controlled: the sender's tie-breaker (64 bits), by its role.
        mapped: XOR-MAPPED-ADDRESS, or the MAPPED-ADDRESS of old servers: the requester as the answering side saw it.
        error: code of an error, 300 to 699.
        candidate_ids: value of 0x8100, the ids of the sending and the receiving candidate. Nothing authenticates it.
        covered, digest: the bytes that MESSAGE-INTEGRITY covers, and its value; empty without one. Attributes behind
            MESSAGE-INTEGRITY could come from anyone, so all but FINGERPRINT and 0x8100 are ignored.
    """

    kind: Kind
    transaction: bytes
    username: str = ""
    priority: int | None = None
    use_candidate: bool = False
    controlling: int | None = None
    controlled: int | None = None
    mapped: Endpoint | None = None
    error: int | None = None
    candidate_ids: tuple[str, str] | None = None
    covered: bytes = field(default=b"", compare=False, repr=False)
    digest: bytes = field(default=b"", compare=False, repr=False)

    def is_from(self, password: str) -> bool:
        """Return True if MESSAGE-INTEGRITY was made with this password. Without the attribute: False."""
        return bool(self.digest) and hmac.compare_digest(integrity(self.covered, password.encode()), self.digest)


# Decoding --------------------------------------------------------------------------------------------------------


def parse(datagram: bytes) -> Message:
    """Return the message that fills the datagram.

    Unknown attributes are ignored, also those that RFC 8489 asks to refuse: NetBird's agents ignore them too. Of equal
    attributes the first counts.

    Raises:
        BadStun: for all else than a well-formed binding message; also for a wrong FINGERPRINT.
    """
    if not looks_like_stun(datagram):
        raise BadStun("no STUN header")
    number, length, _, transaction = HEADER.unpack_from(datagram)
    if length % 4 or length != len(datagram) - HEADER.size:
        raise BadStun(f"length {length} in a datagram of {len(datagram)} bytes")
    try:
        message = Message(Kind(number), transaction)
    except ValueError:
        raise BadStun(f"type {number:#06x}") from None
    seen: set[int] = set()
    at = HEADER.size
    while at < len(datagram):
        kind, size = struct.unpack_from("!HH", datagram, at)
        value = datagram[at + 4 : at + 4 + size]
        if len(value) != size:
            raise BadStun(f"attribute {kind:#06x} passes the end")
        closed = _INTEGRITY in seen or _FINGERPRINT in seen
        if kind not in seen and (not closed or kind in (_FINGERPRINT, _CANDIDATE_IDS)):
            message = _with_attribute(message, kind, value, datagram[:at])
        seen.add(kind)
        at += 4 + size + -size % 4
    return message


def _with_attribute(message: Message, kind: int, value: bytes, before: bytes) -> Message:
    """Return the message with one more attribute, of which `before` is all that precedes it."""
    match kind:
        case 0x0006:  # USERNAME
            return replace(message, username=_text(kind, value, "utf-8"))
        case 0x0008:  # MESSAGE-INTEGRITY
            if len(value) != 20:
                raise BadStun("MESSAGE-INTEGRITY of another length than 20")
            return replace(message, covered=before, digest=value)
        case 0x0009:  # ERROR-CODE
            if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
                raise BadStun("ERROR-CODE out of range")
            return replace(message, error=(value[2] & 7) * 100 + value[3])
        case 0x0001:  # MAPPED-ADDRESS
            return message if message.mapped else replace(message, mapped=address(value, bytes(16)))
        case 0x0020:  # XOR-MAPPED-ADDRESS
            return replace(message, mapped=address(value, COOKIE.to_bytes(4) + message.transaction))
        case 0x0024:  # PRIORITY
            return replace(message, priority=_number(kind, value, 4))
        case 0x0025:  # USE-CANDIDATE
            return replace(message, use_candidate=True)
        case 0x8029:  # ICE-CONTROLLED
            return replace(message, controlled=_number(kind, value, 8))
        case 0x802A:  # ICE-CONTROLLING
            return replace(message, controlling=_number(kind, value, 8))
        case 0x8028:  # FINGERPRINT
            if _number(kind, value, 4) != fingerprint(before):
                raise BadStun("wrong FINGERPRINT")
        case 0x8100:
            source, _, destination = _text(kind, value, "ascii").partition(":")
            return replace(message, candidate_ids=(source, destination))
    return message


def _text(kind: int, value: bytes, encoding: str) -> str:
    if len(value) > MAX_TEXT_BYTES:
        raise BadStun(f"attribute {kind:#06x} of {len(value)} bytes")
    try:
        return value.decode(encoding)
    except UnicodeDecodeError:
        raise BadStun(f"attribute {kind:#06x} is no text") from None


def _number(kind: int, value: bytes, size: int) -> int:
    if len(value) != size:
        raise BadStun(f"attribute {kind:#06x} of {len(value)} bytes instead of {size}")
    return int.from_bytes(value)


# Encoding --------------------------------------------------------------------------------------------------------


def encode(message: Message, password: str | None = None) -> bytes:
    """Return the message's datagram, with MESSAGE-INTEGRITY and FINGERPRINT if there is a password.

    `covered` and `digest` are not looked at. 0x8100 comes last, as from NetBird's agents.
    """
    body = b""
    if message.username:
        body += attribute(_USERNAME, message.username.encode())
    if message.error is not None:
        body += attribute(_ERROR_CODE, bytes((0, 0, message.error // 100, message.error % 100)))
    if message.mapped is not None:
        body += attribute(_XOR_MAPPED_ADDRESS, masked(message.mapped, message.transaction))
    if message.priority is not None:
        body += attribute(_PRIORITY, message.priority.to_bytes(4))
    if message.use_candidate:
        body += attribute(_USE_CANDIDATE, b"")
    if message.controlled is not None:
        body += attribute(_CONTROLLED, message.controlled.to_bytes(8))
    if message.controlling is not None:
        body += attribute(_CONTROLLING, message.controlling.to_bytes(8))
    datagram = HEADER.pack(message.kind, len(body), COOKIE, message.transaction) + body
    if password is not None:
        datagram += attribute(_INTEGRITY, integrity(datagram, password.encode()))
        datagram += attribute(_FINGERPRINT, fingerprint(datagram).to_bytes(4))
    if message.candidate_ids is not None:
        datagram += attribute(_CANDIDATE_IDS, ":".join(message.candidate_ids).encode("ascii"))
    return of_length(datagram, len(datagram))
