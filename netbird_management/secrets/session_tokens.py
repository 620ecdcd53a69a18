"""Session key pairs, one per service, and session tokens: EdDSA JWTs that proxies verify without management."""

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
    """The private half (64 bytes, seed then public key; the caller must seal it) and base64 of the public 32 bytes."""
    key = SigningKey.generate()
    public = bytes(key.verify_key)
    return bytes(key) + public, base64.b64encode(public).decode()


def sign(
    private_key: bytes, domain: str, subject: str, method: Method, *, email: str = "", groups: Sequence[Group] = ()
) -> str:
    """A signed session token; `private_key` comes from `new_key_pair`. Raises `ValueError` without a subject."""
    if not subject:
        raise ValueError("a session needs a subject")
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
    """The session, if its signature, issuer, audience (a folded domain) and time are valid; else `None`.

    Raises `ValueError` if `public_key` is not base64 of 32 bytes.
    """
    raw_key = base64.b64decode(public_key, validate=True)
    if len(raw_key) != 32:
        raise ValueError("a session key must be 32 bytes long")
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": _url(raw_key)})
    try:
        # Revocation compares the hash of a token's text, so only the canonical spelling of a token is valid.
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
    """Accepts only the algorithm of session tokens, by the name that the wire protocol fixes; a token's header cannot
    choose another."""

    def get_alg(self, name: str) -> Any:
        if name != "EdDSA":
            raise UnsupportedAlgorithmError(f"{name} is not supported for session tokens")
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
