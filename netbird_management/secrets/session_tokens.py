"""Session key pairs, one a service, and the tokens signed with them: EdDSA JWTs that proxies verify by themselves."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from joserfc import jwt
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry
from nacl.signing import SigningKey
from pydantic import BaseModel, ConfigDict, Field

from netbird_management.model.accounts import Group
from netbird_management.model.clock import now

ISSUER: Final = "netbird-management"
LIFETIME_SECONDS: Final = 86400
_HEADER: Final = b'{"alg":"EdDSA","typ":"JWT"}'
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
    """Claims of a verified token. `issued_at` is in seconds since 1970."""

    subject: str
    method: str
    issued_at: int


def read_session_token(text: str, public_key: str, domain: str) -> Session | None:
    """The session, if its signature, issuer, audience (a folded domain) and time are right; else `None`.

    Raises `ValueError` where `public_key` is not base64 of 32 bytes.
    """
    raw_key = base64.b64decode(public_key, validate=True)
    if len(raw_key) != 32:
        raise ValueError("a session key has 32 bytes")
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": _url(raw_key)})
    try:
        # A token is revoked by the hash of its text, so each token must have one spelling only.
        if any(_url(_bytes(part)) != part for part in text.split(".")):
            return None
        token = jwt.decode(text, key, registry=_REGISTRY)
        claims = _Claims.model_validate(token.claims)
    except (JoseError, ValueError):
        return None
    if (
        "crit" in token.header
        or not claims.nbf <= now().timestamp() < claims.exp
        or claims.iss != ISSUER
        or domain not in claims.aud
    ):
        return None
    return Session(claims.sub, claims.method, claims.iat)


class _Registry(JWSRegistry):
    """The one algorithm that tokens are signed with, by the name that the wire fixes; no header may choose another."""

    def get_alg(self, name: str) -> Any:
        if name != "EdDSA":
            raise UnsupportedAlgorithmError(f"{name} signs no session")
        return self.algorithms[name]


_REGISTRY: Final = _Registry()


class _Claims(BaseModel):
    model_config = ConfigDict(strict=True)

    iss: str
    sub: Annotated[str, Field(min_length=1)]
    aud: list[str]
    iat: int
    exp: int
    nbf: int = 0
    method: str = ""


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
