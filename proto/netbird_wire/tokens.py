"""Access tokens of proxies and of people: their format, and the hash that a store keeps.

A token is a prefix, 30 random base62 characters, and 6 that check them (CRC-32/IEEE of the 30, base62, zero on the
left). The checksum detects typing mistakes and foreign strings before any look-up; it proves nothing. Only the hash is
stored.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import secrets
import string
import zlib
from typing import Final

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
SECRET_CHARACTERS: Final = 30
CHECKSUM_CHARACTERS: Final = 6


class TokenKind(enum.StrEnum):
    """The kind of access that a token gives; the value is its prefix."""

    PROXY = "nbx_"
    """A proxy, towards management."""
    PERSONAL = "nbp_"
    """A person or a program, towards the REST API."""


def mint(kind: TokenKind) -> str:
    """Make a new token. Its text is available only here: a store keeps the hash."""
    secret = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_CHARACTERS))
    return kind + secret + _checksum(secret)


def well_formed(token: str, kind: TokenKind) -> bool:
    """True if the text has the form and checksum of a token of that kind."""
    if not token.startswith(kind):
        return False
    rest = token[len(kind) :]
    if len(rest) != SECRET_CHARACTERS + CHECKSUM_CHARACTERS or not set(rest) <= _CHARACTERS:
        return False
    secret, checksum = rest[:SECRET_CHARACTERS], rest[SECRET_CHARACTERS:]
    return checksum == _checksum(secret)


def stored_hash(token: str) -> str:
    """The hash that a store keeps: standard base64 of the SHA-256 of the whole token, prefix included."""
    return base64.b64encode(hashlib.sha256(token.encode()).digest()).decode("ascii")


_CHARACTERS: Final = frozenset(ALPHABET)


def _checksum(secret: str) -> str:
    number = zlib.crc32(secret.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
