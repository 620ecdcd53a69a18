"""Session key pairs, one a service, and the tokens signed with them: EdDSA JWTs that proxies verify by themselves."""

import asyncio
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
from netbird_management.model.services import Service
from netbird_management.store.models import ServiceRow
from netbird_management.store.state import State

ISSUER: Final = "netbird-management"
LIFETIME_SECONDS: Final = 86400
MAX_BYTES: Final = 3800
KEYS: Final = 16_384
"""Private halves that are kept open; a service has a new one whenever its credentials change."""
_HEADER: Final = b'{"alg":"EdDSA","typ":"JWT"}'
# Written and read here, with libsodium alone: the one algorithm is fixed, and no header may choose another.
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
    key = (service.id, service.session_public_key)
    private_key = state.session_keys.get(key)
    if private_key is None:
        async with state.read() as session:
            row = await session.get(ServiceRow, service.id)
        if row is None:
            raise LookupError(f"service {service.id} not found")
        if len(state.session_keys) >= KEYS:
            state.session_keys.pop(next(iter(state.session_keys)))  # it is opened again when it is wanted
        private_key = state.session_keys[key] = state.vault.open(row.session_private_key)
    await _after_revocations(state, service, subject)
    token = sign(private_key, service.domain, subject, method, email=email, groups=groups)
    if len(token) > MAX_BYTES:
        # Browsers keep no cookie of more than 4096 bytes. Proxies learn the groups when they ask about the session.
        token = sign(private_key, service.domain, subject, method, email=email)
    return token


async def _after_revocations(state: State, service: Service, subject: str) -> None:
    """Let the second of a subject's revocation pass.

    Tokens tell whole seconds: one made later in that second would count as one from before, and let nobody in.
    """
    account = state.snapshots.get(service.account_id)
    ended = [one.not_before for one in account.revocations if one.subject == subject] if account is not None else []
    moment = now()
    if ended and max(ended) > moment.replace(microsecond=0):
        await asyncio.sleep((1_000_000 - moment.microsecond) / 1_000_000)


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
