"""Single sign-on for services, from a proxy's request for the login URL to the session token.

Management stores nothing while a user logs in at the provider. The login's state, which the browser carries, contains
the destination, the expiry and a MAC; the secrets of the login are derived from the state and management's key. Only
used states are stored.
"""

import base64
import binascii
import hashlib
import hmac
import logging
import os
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from netbird_management.login.claimed_accounts import ClaimedAccounts
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import IdentityProvider, LoginRefused
from netbird_management.login.people import founder, known_user, user_of
from netbird_management.model.admission import Refusal, refusal
from netbird_management.model.clock import now
from netbird_management.model.errors import BadRequest, PreconditionFailed
from netbird_management.model.ids import AccountId, UserId
from netbird_management.model.services import Service
from netbird_management.operations.accounts import DNS_DOMAIN
from netbird_management.operations.nonces import spend
from netbird_management.operations.sessions import mint_session_token
from netbird_management.plugins.steps import ALLOW, Login
from netbird_management.secrets.vault import Vault
from netbird_management.store.state import State

LIFETIME_SECONDS: Final = 600
LONGEST_REDIRECT: Final = 2048
NOT_ALLOWED: Final = "You are not allowed to use this service"
_REFUSALS: Final = {
    Refusal.USER_NOT_FOUND: "Service configuration error",
    Refusal.PENDING_APPROVAL: "Your account is pending approval by an administrator",
    Refusal.USER_BLOCKED: "Your account is blocked",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _State:
    redirect: str
    nonce: str
    expires_at: datetime
    account: bytes = b""
    """Digest of the account whose service began the login."""


class SignOn:
    """Logins at the identity provider, for all services."""

    def __init__(
        self, state: State, provider: IdentityProvider, gates: SessionGates, *, dns_domain: str = DNS_DOMAIN
    ) -> None:
        """`dns_domain` is the DNS domain of peers in accounts that a login creates."""
        self._state = state
        self._provider = provider
        self._gates = gates
        self._accounts = ClaimedAccounts(provider.settings)
        self._dns_domain = dns_domain

    async def begin(self, redirect_url: str, account_id: AccountId) -> str:
        """The provider's login URL. Raises `BadRequest` if `redirect_url` is not on a service with single sign-on;
        `ProviderFailed`."""
        if self._service(redirect_url, account_id) is None:
            raise BadRequest("redirect_url is not on the host of a service with single sign-on")
        state = _written(self._state.vault, redirect_url, account_id)
        return await self._provider.login_url(state=state, verifier=self._verifier(state), nonce=self._nonce(state))

    async def bearer(self, token: str) -> UserId | None:
        """The user of a token from the provider; `None` for an invalid token and for a person who has not logged in
        before. Raises `ProviderFailed`.

        If the provider's claim determines accounts, the first person of an account creates it, and other new persons
        become users who may have to wait for approval.
        """
        try:
            person = await self._provider.bearer(token)
        except LoginRefused:
            return None
        user_id = await known_user(self._state, person)
        if not self._accounts.asked:
            return user_id
        account_id = self._accounts.of(person)
        if account_id is None:
            return None
        account = self._state.snapshots.get(account_id)
        if user_id is not None:
            return user_id if account is not None and user_id in account.users else None
        try:
            if account is not None:
                user = await user_of(self._state, account_id, person)
            else:
                user = await founder(self._state, account_id, person, dns_domain=self._dns_domain)
        except PreconditionFailed as full:
            _log_full(account_id, full)
            return None
        return None if user is None else user.id

    async def finish(self, text: str, *, code: str, error: str) -> str:
        """The URL to which the browser returns, with a session token or the reason for a denial in its query.

        Raises `BadRequest` for a state that is forged, expired or used; `ProviderFailed`, `LoginRefused`.
        """
        state = _read(self._state.vault, text)
        await self._spend(state)
        if error or not code:
            return _back(state.redirect, error="access_denied", error_description="The login was canceled")
        person = await self._provider.person(code=code, verifier=self._verifier(text), nonce=self._nonce(text))
        service = self._service(state.redirect, None)
        if service is not None and state.account != _digest(service.account_id):
            service = None  # the domain now belongs to another account, which must not learn the user
        if service is not None and self._accounts.asked and self._accounts.of(person) != service.account_id:
            _log.info("login.denied", extra={"service_id": service.id, "method": "oidc", "reason": "other_account"})
            return _back(state.redirect, error="access_denied", error_description=NOT_ALLOWED)
        try:
            user = None if service is None else await user_of(self._state, service.account_id, person)
        except PreconditionFailed as full:
            _log_full(None if service is None else service.account_id, full)
            return _back(state.redirect, error="access_denied", error_description="Too many users wait for approval")
        if service is None or user is None or user.account_id != service.account_id:
            return _back(state.redirect, error="access_denied", error_description="Service configuration error")
        if (reason := refusal(user)) is not None:
            return _back(state.redirect, error="access_denied", error_description=_REFUSALS[reason])
        account = self._state.snapshots.get(service.account_id)
        if account is None:
            return _back(state.redirect, error="access_denied", error_description="Service configuration error")
        groups = tuple(group for id_ in user.auto_groups if (group := account.groups.get(id_)) is not None)
        login = Login("oidc", user.id, user, groups)
        if (decision := await self._gates.judge(service, account, login)) is not ALLOW:
            _log.info("login.denied", extra={"service_id": service.id, "method": "oidc", "reason": decision.reason})
            return _back(state.redirect, error="access_denied", error_description=NOT_ALLOWED)
        token = await mint_session_token(self._state, service, user.id, "oidc", email=user.email, groups=groups)
        _log.info("login.accepted", extra={"service_id": service.id, "user_id": user.id})
        return _back(state.redirect, session_token=token)

    def _service(self, redirect_url: str, account_id: AccountId | None) -> Service | None:
        parts = urlsplit(redirect_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            return None
        if len(redirect_url) > LONGEST_REDIRECT or not redirect_url.isascii() or not redirect_url.isprintable():
            return None
        match = self._state.snapshots.by_domain(parts.hostname)
        if match is None or account_id not in (None, match[1].account_id):
            return None
        bearer = match[1].auth.bearer_auth
        return match[1] if bearer is not None and bearer.enabled else None

    async def _spend(self, state: _State) -> None:
        async with self._state.write() as session:
            if not await spend(session, state.nonce, state.expires_at):
                raise BadRequest("this login was already finished")

    def _verifier(self, state: str) -> str:
        return _url(hmac.digest(self._state.vault.derive("oidc verifier"), state.encode(), hashlib.sha256))

    def _nonce(self, state: str) -> str:
        return _url(hmac.digest(self._state.vault.derive("oidc nonce"), state.encode(), hashlib.sha256))


def _digest(account_id: AccountId) -> bytes:
    return hashlib.sha256(account_id.encode()).digest()[:16]


def _written(vault: Vault, redirect: str, account_id: AccountId) -> str:
    """A login's state: `place|nonce|mac`. The nonce consists of the expiry, random bytes and the account's digest."""
    expires = int((now() + timedelta(seconds=LIFETIME_SECONDS)).timestamp())
    nonce = struct.pack(">Q", expires) + os.urandom(16) + _digest(account_id)
    signed = f"{base64.urlsafe_b64encode(redirect.encode()).decode()}|{_url(nonce)}"
    return f"{signed}|{_mac(vault, signed)}"


def _read(vault: Vault, text: str) -> _State:
    """The login's state, after checks of its MAC and expiry. Raises `BadRequest` for a forged or expired state."""
    signed, _, mac = text.rpartition("|")
    place, _, nonce = signed.partition("|")
    if not hmac.compare_digest(mac.encode(), _mac(vault, signed).encode()):
        raise BadRequest("the login's state was not issued by this management")
    try:
        redirect = base64.urlsafe_b64decode(place).decode()
        raw = base64.urlsafe_b64decode(nonce + "=" * (-len(nonce) % 4))
        (expires,) = struct.unpack(">Q", raw[:8])
        expires_at = datetime.fromtimestamp(expires, UTC)
    except (ValueError, binascii.Error, struct.error, OverflowError) as error:
        raise BadRequest("the login's state cannot be read") from error
    if expires_at <= now():
        raise BadRequest("the login took too long")
    return _State(redirect, nonce, expires_at, raw[24:])


def _mac(vault: Vault, signed: str) -> str:
    return hmac.digest(vault.derive("oidc state"), signed.encode(), hashlib.sha256).hex()


def _back(redirect: str, **query: str) -> str:
    """The requested URL over TLS, with `query` appended to its query."""
    parts = urlsplit(redirect)
    more = urlencode(query)
    return urlunsplit(("https", parts.netloc, parts.path, f"{parts.query}&{more}" if parts.query else more, ""))


def _url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _log_full(account_id: AccountId | None, error: PreconditionFailed) -> None:
    _log.warning("login.stranger.refused", extra={"account_id": account_id, "reason": error.message})
