"""Session key pairs, one a service, and the tokens signed with them: EdDSA JWTs that proxies verify by themselves."""

import base64
from collections.abc import Sequence
from typing import Final, Literal

from joserfc import jwt
from joserfc.jwk import OKPKey
from nacl.signing import SigningKey

from netbird_management.clock import now
from netbird_management.network.model import Group
from netbird_management.services.model import Service
from netbird_management.state import State
from netbird_management.store.models import ServiceRow

ISSUER: Final = "netbird-management"
LIFETIME_SECONDS: Final = 86400
Method = Literal["password", "pin", "oidc", "header"]


def new_key_pair() -> tuple[bytes, str]:
    """The private half (64 bytes, seed then public key; seal it) and base64 of the 32 public bytes."""
    key = SigningKey.generate()
    public = bytes(key.verify_key)
    return bytes(key) + public, base64.b64encode(public).decode()


async def mint_session_token(
    state: State, service: Service, subject: str, method: Method, *, email: str = "", groups: Sequence[Group] = ()
) -> str:
    """A session on one service, for its domain alone, valid for a day.

    `subject` is a user id, or a peer id where the peer has no user, or `password-user` and the like. Raises
    `LookupError` if the service is gone, `VaultError` if its key does not open.
    """
    async with state.read() as session:
        row = await session.get(ServiceRow, service.id)
    if row is None:
        raise LookupError(f"service {service.id} not found")
    return sign(state.vault.open(row.session_private_key), service.domain, subject, method, email=email, groups=groups)


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
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": _url(private_key[32:]), "d": _url(private_key[:32])})
    return jwt.encode({"alg": "EdDSA", "typ": "JWT"}, claims, key, algorithms=["EdDSA"])


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
