"""Time-limited credentials that management issues to peers: tokens for relays, and passwords for TURN servers.

Management and each server share a secret; no server asks management about a credential. Neither kind is bound to a
peer, so whoever has one may use it until it expires.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final, Self

HMAC_SHA256: Final = 1
"""The only algorithm of token signatures."""
SIGNATURE_BYTES: Final = 32
MAX_PAYLOAD_BYTES: Final = 137
"""Longest payload: an Auth message of a peer has at most 212 bytes."""
_MAX_EXPIRY_DIGITS: Final = 19


class BadToken(ValueError):
    """Bytes or texts are not a relay's token. The message quotes none of them."""


@dataclass(frozen=True, slots=True)
class RelayToken:
    """A relay's token as management sends it.

    Attributes:
        payload: the UNIX time in seconds at which the token expires, in decimal digits.
        signature: HMAC-SHA-256 of the payload, 32 bytes; `repr` leaves it out.
        algorithm: of the signature, one byte.
    """

    payload: str
    signature: bytes = field(repr=False)
    algorithm: int = HMAC_SHA256

    @property
    def signature_text(self) -> str:
        """The signature as management sends it: standard base64."""
        return base64.b64encode(self.signature).decode()

    @property
    def expires_at(self) -> int | None:
        """UNIX time in seconds; None if the payload is no plain decimal number."""
        if not (self.payload.isascii() and self.payload.isdigit()) or len(self.payload) > _MAX_EXPIRY_DIGITS:
            return None
        return int(self.payload)

    @classmethod
    def from_config(cls, payload: str, signature_text: str) -> Self:
        """The token of `RelayConfig`'s fields `tokenPayload` and `tokenSignature`. Raises BadToken."""
        try:
            token = cls(payload, base64.b64decode(signature_text, validate=True))
        except (binascii.Error, ValueError) as exc:
            raise BadToken("the signature of a relay token is standard base64") from exc
        token.encode()
        return token

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The token in a peer's Auth message. Raises BadToken."""
        payload = data[1 + SIGNATURE_BYTES :]
        if not payload or not payload.isascii():
            raise BadToken("a relay token is an algorithm, a signature and an ASCII payload")
        token = cls(payload.decode("ascii"), data[1 : 1 + SIGNATURE_BYTES], data[0])
        token.encode()
        return token

    def encode(self) -> bytes:
        """The token as a peer's Auth message holds it. Raises BadToken."""
        if len(self.signature) != SIGNATURE_BYTES or not self.payload.isascii() or not 0 <= self.algorithm <= 255:
            raise BadToken(f"a relay token has a signature of {SIGNATURE_BYTES} bytes and an ASCII payload")
        if not 0 < len(self.payload) <= MAX_PAYLOAD_BYTES:
            raise BadToken(f"a relay token has a payload of 1 to {MAX_PAYLOAD_BYTES} bytes")
        return bytes((self.algorithm,)) + self.signature + self.payload.encode("ascii")

    def is_valid(self, secret: str, now: float) -> bool:
        """True if the token was made with this secret and has not expired at `now`, a UNIX time in seconds.

        The signatures are compared in constant time.
        """
        expected = relay_signature(secret, self.payload.encode("utf-8", "replace"))
        if not hmac.compare_digest(expected, self.signature) or self.algorithm != HMAC_SHA256:
            return False
        return self.expires_at is not None and now < self.expires_at


def relay_token(secret: str, expires_at: int) -> RelayToken:
    """A token for every relay with this secret. `expires_at` is UNIX time in seconds."""
    payload = str(expires_at)
    return RelayToken(payload, relay_signature(secret, payload.encode()))


def relay_signature(secret: str, payload: bytes) -> bytes:
    """The signature that makes a payload valid: HMAC-SHA-256, with the SHA-256 of the secret's text as its key."""
    return hmac.digest(hashlib.sha256(secret.encode()).digest(), payload, hashlib.sha256)


@dataclass(frozen=True, slots=True)
class TurnCredentials:
    """A user name and password for a TURN server."""

    user: str
    password: str = field(repr=False)


def turn_credentials(secret: str, expires_at: int) -> TurnCredentials:
    """Credentials for every TURN server with this secret, by the rule that coturn calls its REST API: the user name is
    the UNIX time of expiry in seconds, and the password is the HMAC-SHA-1 of the user name in standard base64."""
    user = str(expires_at)
    return TurnCredentials(user, base64.b64encode(hmac.digest(secret.encode(), user.encode(), "sha1")).decode())
