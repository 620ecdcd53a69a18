"""One service as logins see it, and the calls to management that are about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from netbird_proxy import (
    AccountId,
    BoundedTable,
    Deny,
    ExchangeView,
    LoginThrottle,
    ManagementError,
    ManagementRefused,
    Proxy,
    RouteSpec,
    ServiceId,
    SingleFlight,
    retry_after,
    source_of,
)
from netbird_proxy.defaults.session.return_paths import ROOT, bracketed
from netbird_proxy.defaults.session.settings import SessionSettings
from netbird_proxy.defaults.session.tokens import SessionToken, Tokens
from netbird_wire.extensions import Extension
from netbird_wire.proxy_service_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    GetOIDCURLRequest,
    GetOIDCURLResponse,
    ValidateSessionRequest,
)

FAILURE_SECONDS = 1.0
"""Seconds without another question about a provider that failed."""
FAILURES = 4096
"""Services whose last failure is remembered."""


@dataclass(frozen=True, slots=True)
class Login:
    """A credential that was right: the token as it came, and what it says."""

    token: bytes
    session: SessionToken


@dataclass(frozen=True, slots=True)
class Site:
    """A service with its schemes; `host` is folded, `domain` as management knows it."""

    service: ServiceId
    account: AccountId
    host: str
    domain: str
    same_origin: bool
    preflight_origins: tuple[str, ...]
    ask_for_both: bool
    settings: SessionSettings

    @classmethod
    def of(cls, route: RouteSpec) -> Site:
        settings = route.values.get(SessionSettings, _NONE)
        return cls(
            route.service,
            route.account,
            route.host,
            route.domain,
            route.same_origin,
            route.preflight_origins,
            route.ask_for_both,
            settings,
        )


_NONE = SessionSettings()


class CredentialChecker:
    """Asks management about credentials, as often as a source may ask."""

    def __init__(self, tokens: Tokens, throttle: LoginThrottle) -> None:
        self.tokens = tokens
        self._throttle = throttle

    async def authenticate(
        self, exchange: ExchangeView, site: Site, proxy: Proxy, request: AuthenticateRequest
    ) -> Login | Deny:
        """Ask management about a credential, and return the login or the refusal.

        401 `wrong_credentials`, 403 `not_allowed` (it was right, and a plugin of management's says no), 429
        `too_many_tries`, 503 where it could not be asked or its answer is of no use.
        """
        source = source_at(exchange, proxy)
        try:
            async with self._throttle.turn(site.service, source):
                return await self._authenticate(exchange, site, proxy, request, source)
        except TimeoutError:
            return _later(429, "too_many_tries", f"too many tries of {source} wait to be judged", 1)

    async def _authenticate(
        self, exchange: ExchangeView, site: Site, proxy: Proxy, request: AuthenticateRequest, source: str
    ) -> Login | Deny:
        alone = Extension.CLIENT_ADDRESS not in proxy.management.extensions
        if wait := self._throttle.reserve(site.service, source, alone=alone):
            return _later(429, "too_many_tries", f"{source} was wrong too often", wait)
        request.id, request.account_id = site.service, site.account
        if not alone:
            request.client_address = exchange.client_address
        try:
            answer = await proxy.management.call("Authenticate", request)
        except ManagementError as error:
            self._throttle.withdraw(site.service, source)
            return _later(503, "management_unavailable", str(error), error.retry_after)
        # A client that leaves before it hears the answer has had its try: leaving may cost management no hashes.
        if not isinstance(answer, AuthenticateResponse):
            self._throttle.withdraw(site.service, source)
            return _later(503, "login_failed", "Authenticate: not an answer", 2)
        if not answer.success and answer.retry_after_seconds:
            self._throttle.hold_back(site.service, source, answer.retry_after_seconds)
            return _later(429, "too_many_tries", "management has seen too many wrong tries", answer.retry_after_seconds)
        if not answer.success and answer.denied_reason:
            self._throttle.record_success(site.service, source)
            return Deny(403, "not_allowed", f"management says {answer.denied_reason}")
        if not answer.success:
            return Deny(401, "wrong_credentials", f"management did not accept the {request.WhichOneof('request')}")
        self._throttle.record_success(site.service, source)
        token = answer.session_token.encode()
        session = self.tokens.verify(token, site.settings.key, site.host)
        expected_method = {"password": "password", "pin": "pin", "header_auth": "header"}[
            str(request.WhichOneof("request"))
        ]
        if session is None or session.method != expected_method:
            return _later(503, "login_failed", "management's session token is not one of this service", 2)
        return Login(token, session)


class Providers:
    """Where logins at an identity provider begin, as management says for each.

    Nobody has to be known for such a question, so a failure is remembered for a moment: management gets no question
    for each of the requests that come meanwhile.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failed: BoundedTable[ServiceId, tuple[ManagementError, float]] = BoundedTable(FAILURES)
        self._flights: SingleFlight[ServiceId, bool] = SingleFlight()

    async def url(self, site: Site, proxy: Proxy, redirect_url: str) -> str:
        """The address for a login that ends at `redirect_url`.

        Raises:
            ManagementError: management could not be asked, has no provider, or names no address.
        """
        failure = self._failed.get(site.service)
        if failure is not None and self._clock() < failure[1]:
            raise failure[0]
        try:
            url = await self._ask(site, proxy, redirect_url)
        except ManagementError as error:
            self._failed.keep(site.service, (error.with_traceback(None), self._clock() + FAILURE_SECONDS))
            raise
        self._failed.pop(site.service, None)
        return url

    async def exists(self, site: Site, proxy: Proxy) -> bool:
        """Return whether management has a provider for the service. Concurrent callers share one request.

        Raises:
            ManagementError: it could not be asked.
        """

        async def ask() -> bool:
            try:
                await self.url(site, proxy, f"https://{bracketed(site.host)}{ROOT}/return")
            except ManagementRefused:
                return False
            return True

        return await self._flights.ask(site.service, ask)

    async def _ask(self, site: Site, proxy: Proxy, redirect_url: str) -> str:
        request = GetOIDCURLRequest(id=site.service, account_id=site.account, redirect_url=redirect_url)
        answer = await proxy.management.call("GetOIDCURL", request)
        url = answer.url if isinstance(answer, GetOIDCURLResponse) else ""
        parts = urlsplit(url)
        if parts.scheme not in ("https", "http") or not parts.netloc or not all("!" <= char <= "~" for char in url):
            raise ManagementError("GetOIDCURL: not an address")
        return url


async def end_session(site: Site, proxy: Proxy, token: bytes) -> None:
    """Have a session refused everywhere, where management can see to that.

    NetBird's cannot: there only the browser forgets it, and its token lives on until it expires.

    Raises:
        ManagementError: it could, and was not reached.
    """
    if Extension.REVOCATIONS in proxy.management.extensions:
        request = ValidateSessionRequest(domain=site.domain, session_token=token.decode("ascii"), end_session=True)
        await proxy.management.call("ValidateSession", request)


def source_at(exchange: ExchangeView, proxy: Proxy) -> str:
    """Return the source of a login attempt; "" if client addresses are not trusted."""
    origin = exchange.origin
    if origin is not None and origin.account is not None:
        return f"peer {origin.peer_key}" if origin.peer_key is not None else origin.peer.host
    return source_of(exchange.client_address) if proxy.client_addresses_trusted else ""


def _later(status: int, code: str, reason: str, seconds: float) -> Deny:
    return Deny(status, code, reason, headers=(retry_after(seconds),))
