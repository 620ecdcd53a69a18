"""Session key pairs, one a service, and the tokens signed with them: EdDSA JWTs that proxies verify by themselves."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from netbird_management.model.accounts import Group
from netbird_management.model.clock import now

ISSUER: Final = "netbird-management"
LIFETIME_SECONDS: Final = 86400
_HEADER: Final = b'{"alg":"EdDSA","typ":"JWT"}'
# Written and read here, with libsodium alone: the one algorithm is fixed, and no header may choose another.
Method = Literal["password", "pin", "oidc", "header"]


def new_key_pair() -> tuple[bytes, str]:
    """The private half (64 bytes, seed then public key; seal it) and base64 of the 32 public bytes."""
    key = SigningKey.generate()
    public = bytes(key.verify_key)
    return bytes(key) + public, base64.b64encode(public).decode()


def sign(
    private_key: bytes, domain: str, subject: str, method: Method, *, email: str = "", groups: Sequence[Group] = ()
) -> str:
    """The token itself; `private_key` as `new_key_pair` made it."""
    if not subject:
        raise ValueError("a session without a subject")
    issued = int(now().timestamp())
    claims: dict[str, object] = {
        "iss": ISSUER,
        "sub": subject,
        "aud": [domain],
        "iat": issued,
        "nbf": issued,
        "exp": issued + LIFETIME_SECONDS,
        "method": method,
    }
    if email:
        claims["email"] = email
    if groups:
        claims["groups"] = [group.id for group in groups]
        claims["group_names"] = [group.name for group in groups]
    head = f"{_url(_HEADER)}.{_url(json.dumps(claims, ensure_ascii=False, separators=(',', ':')).encode())}"
    signature = SigningKey(private_key[:32]).sign(head.encode()).signature
    return f"{head}.{_url(signature)}"


@dataclass(frozen=True, slots=True)
class Session:
    """What a verified token says."""

    subject: str
    method: str
    issued_at: int
    expires_at: int
    email: str = ""


def read_session_token(text: str, public_key: str, domain: str) -> Session | None:
    """The session, if its signature, issuer, audience (a folded domain) and time are right; else `None`.

    Raises `ValueError` where `public_key` is not base64 of 32 bytes.
    """
    key = base64.b64decode(public_key, validate=True)
    if len(key) != 32:
        raise ValueError("a session key has 32 bytes")
    try:
        head, payload, signature = text.encode("ascii").split(b".")
        header, claims = json.loads(_bytes(head)), json.loads(_bytes(payload))
        VerifyKey(key).verify(head + b"." + payload, _bytes(signature))
    except (ValueError, BadSignatureError, RecursionError):
        return None
    if not isinstance(header, dict) or not isinstance(claims, dict) or header.get("alg") != "EdDSA":
        return None
    try:
        claimed = _Claims.model_validate(claims)
    except ValidationError:
        return None
    live = claimed.nbf <= now().timestamp() < claimed.exp
    if not live or claimed.iss != ISSUER or domain not in claimed.aud or "crit" in header:
        return None
    return Session(claimed.sub, claimed.method, claimed.iat, claimed.exp, claimed.email)


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True)

    iss: str
    sub: Annotated[str, Field(min_length=1)]
    aud: list[str]
    iat: int
    exp: int
    nbf: int = 0
    method: str = ""
    email: str = ""


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
