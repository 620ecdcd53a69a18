"""The sealed box around messages between peers, management and signal.

A body is 24 random bytes followed by a NaCl box (Curve25519, XSalsa20-Poly1305) of the serialized message, between the
sender's WireGuard private key and the receiver's public key. The box does not protect against replay: a caller that
needs protection adds it.

    EnvelopeError
    ├── BadKey            not a WireGuard key, or one that no box can be made with
    ├── BadBody           too short to be a box, or not ours to open: changed, another sender, another receiver
    └── BadMessage        the box opened, but its content is not a message of the requested type
"""

from __future__ import annotations

import base64
import binascii
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from nacl.bindings import (
    crypto_box_afternm,
    crypto_box_beforenm,
    crypto_box_NONCEBYTES,
    crypto_box_open_afternm,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes

KEY_BYTES: Final = 32
OVERHEAD_BYTES: Final = crypto_box_NONCEBYTES + 16
"""The excess of a body over its message, in bytes: the nonce, and Poly1305's tag."""

M = TypeVar("M", bound=Message)


class EnvelopeError(Exception):
    """An envelope cannot be made or opened. The text never quotes a key or a body."""


class BadKey(EnvelopeError):
    """The key is not 32 bytes in canonical standard base64, or it is a low-order point."""


class BadBody(EnvelopeError):
    """The body is too short, was changed, or was sealed between other keys; these cases cannot be distinguished."""


class BadMessage(EnvelopeError):
    """The box opened, but its content is not a message of the requested type."""


def parse_key(text: str) -> bytes:
    """The 32 bytes of a WireGuard key.

    Only the canonical spelling passes (44 characters, padding bits zero): keys are compared as text all over the wire,
    so a second spelling of the same key would be a second peer.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadKey("a WireGuard key is standard base64") from None
    if len(key) != KEY_BYTES:
        raise BadKey(f"a WireGuard key has {KEY_BYTES} bytes, this has {len(key)}")
    if format_key(key) != text:
        raise BadKey("a WireGuard key is canonical base64")
    return key


def format_key(key: bytes) -> str:
    """The canonical text of a key's 32 bytes."""
    if len(key) != KEY_BYTES:
        raise BadKey(f"a WireGuard key has {KEY_BYTES} bytes, this has {len(key)}")
    return base64.b64encode(key).decode("ascii")


def public_key(private_key: bytes) -> bytes:
    """The public half."""
    if len(private_key) != KEY_BYTES:
        raise BadKey(f"a WireGuard key has {KEY_BYTES} bytes, this has {len(private_key)}")
    return crypto_scalarmult_base(private_key)


class Envelope:
    """Seals messages to a peer and opens messages from it, with the secret that both derive from each other's keys."""

    __slots__ = ("_shared",)

    def __init__(self, private_key: bytes, other_public_key: bytes) -> None:
        if len(private_key) != KEY_BYTES or len(other_public_key) != KEY_BYTES:
            raise BadKey(f"both keys have {KEY_BYTES} bytes")
        try:
            self._shared: bytes = crypto_box_beforenm(other_public_key, private_key)
        except (CryptoError, RuntimeError):
            # A low-order point: anybody could compute the "shared" secret.
            raise BadKey("this public key shares no secret") from None

    def __repr__(self) -> str:
        return "Envelope(***)"

    def seal(self, message: Message) -> bytes:
        """The body of an EncryptedMessage around `message`; different at every call."""
        nonce: bytes = random_bytes(crypto_box_NONCEBYTES)
        return nonce + crypto_box_afternm(message.SerializeToString(), nonce, self._shared)

    def open(self, body: bytes, kind: type[M]) -> M:
        """The message in a body that the other sealed for us. Raises BadBody or BadMessage."""
        if len(body) < OVERHEAD_BYTES:
            raise BadBody(f"a body has at least {OVERHEAD_BYTES} bytes, this has {len(body)}")
        nonce, box = body[:crypto_box_NONCEBYTES], body[crypto_box_NONCEBYTES:]
        try:
            plain = crypto_box_open_afternm(box, nonce, self._shared)
        except CryptoError:
            raise BadBody("a body was changed, or sealed with another key") from None
        try:
            return kind.FromString(plain)
        except DecodeError:
            raise BadMessage(f"a body does not hold a {kind.DESCRIPTOR.full_name}") from None
