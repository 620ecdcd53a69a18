"""Logins to public services: verifies credentials, and issues, validates and ends sessions."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import grpc

from netbird_host.login_throttle import LoginThrottle
from netbird_management.compute.validate import folded_name
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import AuthenticatedProxy
from netbird_management.login.gates import SessionGates
from netbird_management.login.guess_store import load_source, store_source
from netbird_management.login.identity_provider import ProviderFailed
from netbird_management.login.sign_on import SignOn
from netbird_management.model.accounts import Group, User
from netbird_management.model.admission import refusal
from netbird_management.model.errors import BadRequest
from netbird_management.model.ids import AccountId, ServiceId, UserId
from netbird_management.model.services import SecretAuth, Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.revocations import (
    TOKENS_REVOKED,
    end_sessions_of_busiest,
    revoke,
    revoked_tokens,
)
from netbird_management.operations.sessions import mint_session_token
from netbird_management.plugins.steps import ALLOW, Login
from netbird_management.secrets.passwords import verify_secret
from netbird_management.secrets.session_tokens import Method, Session, read_session_token
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    GetOIDCURLRequest,
    GetOIDCURLResponse,
    Principal,
    ValidateSessionRequest,
    ValidateSessionResponse,
)

HASHES_WAITING: Final = 16
"""Maximum number of an account's logins that are verified or wait for it; beyond it RESOURCE_EXHAUSTED."""
SOURCES: Final = 65_536
"""Maximum number of addresses whose wrong logins are counted in memory."""
LONGEST_SECRET: Final = 1024
"""Maximum length of a credential, in characters; longer ones are wrong."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Credential:
    secret: str
    hashes: Sequence[str]
    subject: str
    method: Method


class _TooEarly(Exception):
    """The address failed too often; it may try again in `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Logins:
    """Answers `Authenticate`, `GetOIDCURL` and `ValidateSession`."""

    def __init__(self, state: State, gates: SessionGates, sign_on: SignOn | None = None) -> None:
        self._state = state
        self._gates = gates
        self._sign_on = sign_on
        self._throttle = LoginThrottle(time.time, sources=SOURCES)
        self._waiting: Counter[AccountId] = Counter()

    def forget(self, service_id: ServiceId) -> None:
        """Forgets the wrong logins of a deleted service."""
        self._throttle.forget(service_id)

    async def authenticate(self, request: AuthenticateRequest, caller: AuthenticatedProxy) -> AuthenticateResponse:
        """Raises `Refused` for a service of another account, for too many concurrent logins, and if the session cannot
        be signed."""
        caller.check_account(request.account_id)
        account = self._state.snapshots.get(request.account_id)
        service = account.services.get(ServiceId(request.id)) if account is not None else None
        if account is None or service is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "no such service")
        credential = _credential(service, request)
        if credential is None:
            return AuthenticateResponse(success=False)
        try:
            right = await self._is_right(service, credential, request.client_address)
        except _TooEarly as early:
            return AuthenticateResponse(success=False, retry_after_seconds=early.seconds)
        if not right:
            _log.info("login.refused", extra={"service_id": service.id, "method": credential.method})
            return AuthenticateResponse(success=False)
        login = Login(credential.method, credential.subject, client_address=request.client_address)
        if (decision := await self._gates.judge(service, account, login)) is not ALLOW:
            _log.info(
                "login.denied",
                extra={"service_id": service.id, "method": credential.method, "reason": decision.reason},
            )
            return AuthenticateResponse(success=False, denied_reason=decision.reason)
        try:
            token = await mint_session_token(self._state, service, credential.subject, credential.method)
        except Exception as error:
            _log.exception("session.sign.failed", extra={"service_id": service.id})
            raise Refused(grpc.StatusCode.INTERNAL, "the session could not be signed") from error
        return AuthenticateResponse(success=True, session_token=token)

    async def _is_right(self, service: Service, credential: _Credential, address: str) -> bool:
        """Verifies a credential. The attempt counts as wrong until it proves right.

        Raises `_TooEarly` for an address that failed too often, and `Refused` for too many concurrent attempts.
        """
        if self._throttle.find(service.id, address) is None:
            stored = await load_source(self._state, service.id, address)
            if self._throttle.find(service.id, address) is None:  # no concurrent login recalled it
                self._throttle.recall(service.id, address, stored)
        try:
            async with self._throttle.turn(service.id, address):
                if wait := self._throttle.reserve(service.id, address):
                    raise _TooEarly(max(1, round(wait + 0.49)))
                try:
                    with self._place(service.account_id):
                        right = await _matches(service.account_id, credential)
                except Exception:
                    self._throttle.withdraw(service.id, address)
                    raise
                # A cancelled attempt stays counted, as its hash is computed anyway.
                if right:
                    self._throttle.record_success(service.id, address)
        except TimeoutError as error:
            raise _TooEarly(1) from error
        if (source := self._throttle.find(service.id, address)) is not None:
            await store_source(self._state, service.id, address, source)
        return right

    async def oidc_url(self, request: GetOIDCURLRequest, caller: AuthenticatedProxy) -> GetOIDCURLResponse:
        """Raises `Refused` for an absent or unavailable identity provider, and for a redirect URL of no service."""
        caller.check_account(request.account_id)
        if self._sign_on is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "no identity provider is configured")
        try:
            url = await self._sign_on.begin(request.redirect_url, AccountId(request.account_id))
        except BadRequest as error:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, error.message) from error
        except ProviderFailed as error:
            _log.warning("login.provider.failed", extra={"reason": str(error)})
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the identity provider is unavailable") from error
        return GetOIDCURLResponse(url=url)

    async def validate_session(
        self, request: ValidateSessionRequest, caller: AuthenticatedProxy
    ) -> ValidateSessionResponse:
        """The order of the checks is part of the contract, as it decides the reason of a denial."""
        if not request.domain or not request.session_token:
            return _denied("missing domain or session_token")
        match = self._state.snapshots.by_domain(request.domain)
        if match is None:
            return _denied("service_not_found")
        account, service = match
        caller.check_account(service.account_id)
        try:
            session = read_session_token(request.session_token, service.session_public_key, service.domain)
        except ValueError:
            return _denied("invalid_service_config")
        digest = hashlib.sha256(request.session_token.encode()).digest()
        if session is None or _is_revoked(account, session, digest):
            return _denied("invalid_token")
        if request.end_session:
            async with self._state.change(account.account.id) as transaction:
                if await revoked_tokens(transaction) >= TOKENS_REVOKED:
                    self._state.count("logouts_widened")
                    await end_sessions_of_busiest(transaction, self._state.vault)
                await revoke(transaction, token_hash=digest, service_id=service.id)
            return _denied("session_ended")
        return await self._judged(account, service, session)

    async def _judged(self, account: AccountSnapshot, service: Service, session: Session) -> ValidateSessionResponse:
        user = account.users.get(UserId(session.subject))
        if user is None:
            elsewhere = any(UserId(session.subject) in other.users for other in self._state.snapshots.all())
            return _denied("account_mismatch" if elsewhere else "user_not_found")
        groups = tuple(group for id_ in user.auto_groups if (group := account.groups.get(id_)) is not None)
        login = Login(session.method, session.subject, user, groups, again=True)
        answer = _identity(user, groups)
        if (reason := refusal(user)) is not None:
            answer.denied_reason = reason.value
        elif not may_use(service, user):
            answer.denied_reason = "not_in_group"
        elif (decision := await self._gates.judge(service, account, login)) is not ALLOW:
            answer.denied_reason = decision.reason
        else:
            answer.valid = True
        return answer

    @contextmanager
    def _place(self, account_id: AccountId) -> Iterator[None]:
        if self._waiting[account_id] >= HASHES_WAITING:
            self._state.count("logins_refused")
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many logins at once")
        self._waiting[account_id] += 1
        try:
            yield
        finally:
            self._waiting[account_id] -= 1
            if not self._waiting[account_id]:
                del self._waiting[account_id]


def may_use(service: Service, user: User) -> bool:
    """True if single sign-on admits the user to the service: it names no groups, or one of the user's."""
    bearer = service.auth.bearer_auth
    if bearer is None or not bearer.enabled or not bearer.distribution_groups:
        return True
    return bool(set(bearer.distribution_groups) & set(user.auto_groups))


def _credential(service: Service, request: AuthenticateRequest) -> _Credential | None:
    """The credential to verify; None if the service does not enable its scheme, or if it is empty or too long."""
    kind = request.WhichOneof("request")
    credential: _Credential | None = None
    if kind == "password":
        hashes = _enabled(service.auth.password_auth)
        credential = _Credential(request.password.password, hashes, "password-user", "password")
    elif kind == "pin":
        credential = _Credential(request.pin.pin, _enabled(service.auth.pin_auth), "pin-user", "pin")
    elif kind == "header_auth":
        name = folded_name(request.header_auth.header_name)
        hashes = [
            auth.value
            for auth in service.auth.header_auths
            if auth.enabled and (not name or folded_name(auth.header) == name)
        ]
        credential = _Credential(request.header_auth.header_value, hashes, "header-user", "header")
    if credential is None or not credential.hashes or not 0 < len(credential.secret) <= LONGEST_SECRET:
        return None
    return credential


def _enabled(scheme: SecretAuth | None) -> list[str]:
    return [scheme.secret] if scheme is not None and scheme.enabled else []


async def _matches(account_id: AccountId, credential: _Credential) -> bool:
    for stored in credential.hashes:
        if await verify_secret(account_id, credential.secret, stored):
            return True
    return False


def _is_revoked(account: AccountSnapshot, session: Session, digest: bytes) -> bool:
    return any(
        revoked.token_hash == digest
        or (revoked.subject == session.subject and session.issued_at < revoked.not_before.timestamp())
        for revoked in account.revocations
    )


def _denied(reason: str) -> ValidateSessionResponse:
    return ValidateSessionResponse(denied_reason=reason)


def _identity(user: User, groups: Sequence[Group]) -> ValidateSessionResponse:
    return ValidateSessionResponse(
        user_id=user.id,
        user_email=user.email,
        peer_group_ids=[group.id for group in groups],
        peer_group_names=[group.name for group in groups],
        principal=Principal(user_id=user.id),
    )
