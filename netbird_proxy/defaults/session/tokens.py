"""Session tokens: EdDSA JWTs that management signs for one service's host, and that we verify by ourselves.

The one algorithm is fixed and no header may choose another. A token has one spelling: whatever could be written in two
ways is refused, or a revoked one could come back in other letters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from netbird_proxy import Group, Identity, LatestTable, UserId

ISSUER = "netbird-management"
MAX_BYTES = 8192
REMEMBERED = 8192
"""Verified tokens that are kept until they expire: a check costs some 90 µs."""
LINES, LONGEST_LINE = 4096, 4096
"""Lines of cookies that are kept with the session in them, and bytes of such a line."""
EARLY = 30
"""Seconds that management's clock may be ahead of ours."""
_HEADER_KEYS = frozenset(("alg", "typ", "kid"))


@dataclass(frozen=True, slots=True)
class SessionToken:
    """The content of a verified token.

    Attributes:
        issued_at, expires_at: seconds since the epoch.
        hash: SHA-256 of the token as it came.
        identity: whom it is about; the same object each time, so that whoever remembers by it can.
        token: as it came.
    """

    subject: str
    method: str
    issued_at: int
    expires_at: int
    hash: bytes
    identity: Identity
    token: bytes = field(repr=False)


class Tokens:
    """Verifies, and remembers what was verified, and in which line of cookies it stood."""

    def __init__(self, *, clock: Callable[[], float] = time.time, remembered: int = REMEMBERED) -> None:
        self._clock = clock
        self._verified: LatestTable[tuple[bytes, str, bytes], SessionToken] = LatestTable(remembered)
        self._lines: LatestTable[tuple[bytes, str, bytes], SessionToken] = LatestTable(min(LINES, remembered))

    def verify(self, token: bytes, key: bytes, audience: str) -> SessionToken | None:
        """The session, or None for whatever is wrong with it.

        Args:
            key: the service's public key, 32 bytes.
            audience: the service's folded host.
        """
        place = (key, audience, token)
        session = self._verified.get(place)
        if session is None:
            session = _read(token, key, audience)
            if session is None or session.issued_at > self._clock() + EARLY:
                return None
            self._verified.keep(place, session)
        return session if self._clock() < session.expires_at else None

    def recall(self, line: bytes, key: bytes, audience: str) -> SessionToken | None:
        """The session in a line of cookies that was remembered: what `verify` says of it now, and no more than that."""
        session = self._lines.get((key, audience, line))
        return session if session is not None and self._clock() < session.expires_at else None

    def remember(self, line: bytes, key: bytes, audience: str, session: SessionToken) -> None:
        """This line has this session and no other: a browser sends the same one each time."""
        if len(line) <= LONGEST_LINE:
            self._lines.keep((key, audience, line), session)


def _read(token: bytes, key: bytes, audience: str) -> SessionToken | None:
    if len(token) > MAX_BYTES:
        return None
    from nacl.exceptions import BadSignatureError  # services without sessions start without it
    from nacl.signing import VerifyKey

    try:
        head, payload, signature = token.split(b".")
        header = json.loads(_bytes(head), object_pairs_hook=_once)
        VerifyKey(key).verify(head + b"." + payload, _bytes(signature))
        claims = json.loads(_bytes(payload), object_pairs_hook=_once)
    except (ValueError, BadSignatureError, RecursionError):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        return None
    if header.get("alg") != "EdDSA" or header.keys() - _HEADER_KEYS or header.get("typ", "JWT") != "JWT":
        return None
    return _claimed(claims, audience, token)


def _claimed(claims: dict[str, Any], audience: str, token: bytes) -> SessionToken | None:
    subject, method, audiences = claims.get("sub"), claims.get("method"), claims.get("aud")
    issued, expires, begins = claims.get("iat"), claims.get("exp"), claims.get("nbf", claims.get("iat"))
    if claims.get("iss") != ISSUER or not isinstance(subject, str) or not isinstance(method, str):
        return None
    if not _is_name(subject) or not _is_name(method):
        return None
    if not isinstance(audiences, list) or audience not in [_folded(name) for name in audiences]:
        return None
    if type(issued) is not int or type(expires) is not int or type(begins) is not int or begins > issued:
        return None
    email = claims.get("email", "")
    ids, names = claims.get("groups", []), claims.get("group_names", [])
    if not isinstance(email, str) or not isinstance(ids, list) or not isinstance(names, list):
        return None
    if not all(isinstance(text, str) for text in (*ids, *names)):
        return None
    # Pairs by position: an empty id is dropped with its name, and never shifts the others.
    groups = tuple(Group(id_, names[i] if i < len(names) else "") for i, id_ in enumerate(ids) if id_)
    identity = Identity(
        user_id=UserId(subject),
        email=email,
        groups=groups,
        method=method,
        attributes=MappingProxyType({"issued_at": str(issued)}),
    )
    return SessionToken(subject, method, issued, expires, hashlib.sha256(token).digest(), identity, token)


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 255 and value.isprintable()


def _folded(value: object) -> str:
    """Management writes folded hosts; NetBird's writes what the operator typed."""
    return value.lower().rstrip(".") if isinstance(value, str) else ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key twice")
    return members


def _bytes(text: bytes) -> bytes:
    try:
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text:
        raise ValueError("not the one spelling of it")
    return raw
