"""Authentication by a session cookie or a credential in a header, and the offers of logins."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import replace

from netbird_proxy import (
    BoundedTable,
    Challenge,
    Deny,
    ExchangeView,
    Group,
    Headers,
    Identity,
    LatestTable,
    ManagementError,
    Offer,
    OfferField,
    Proxy,
    SingleFlight,
    is_browser,
    is_cross_site,
    is_unsafe,
    retry_after,
)
from netbird_proxy.defaults.session.confirmations import Confirmations
from netbird_proxy.defaults.session.cookies import SESSION, find, line_of
from netbird_proxy.defaults.session.return_paths import ROOT, bracketed, requested_path, with_return_path
from netbird_proxy.defaults.session.site import CredentialChecker, Login, Providers, Site, source_at
from netbird_proxy.defaults.session.tokens import SessionToken
from netbird_wire.proxy_service_pb2 import AuthenticateRequest, HeaderAuthRequest

CREDENTIAL_SECONDS = 300.0
CREDENTIALS = 4096
_SCHEMES = frozenset(("basic", "bearer", "digest"))
CONFIRMED = 1024
"""Identities of a service that are kept with their confirmed groups; whether those hold is not asked here."""
OFFERED_SECONDS = 60.0
"""Seconds for which the answer is kept whether management has an identity provider."""
UNKNOWN_SECONDS = 5.0
"""Seconds for which single sign-on is left out after management did not answer."""


class ByCookie:
    """Authenticates by the cookie of a session. An invalid session identifies nobody."""

    def __init__(
        self,
        site: Site,
        proxy: Proxy,
        checker: CredentialChecker,
        confirmations: Confirmations,
        clock: Callable[[], float],
    ) -> None:
        self._site = site
        self._proxy = proxy
        self._tokens = checker.tokens
        self._confirmations = confirmations
        self._clock = clock
        self._key, self._host = site.settings.key, site.host
        self._methods, self._max_age = site.settings.methods, site.settings.max_age
        self._confirmed: BoundedTable[bytes, tuple[tuple[Group, ...], Identity]] = BoundedTable(CONFIRMED)

    async def identify(self, exchange: ExchangeView) -> Identity | Deny | None:
        if exchange.scheme != "https":
            return None
        line = line_of(exchange.headers)
        session = self._tokens.recall(line, self._key, self._host) or self._verified(exchange.headers, line)
        if session is None or session.method not in self._methods:
            return None
        site = self._site
        if session.issued_at + self._max_age <= self._clock():
            return None
        if self._proxy.revocations.revoked(
            site.account, subject=session.subject, token_hash=session.hash, issued_at=session.issued_at
        ):
            return None
        who = session.identity
        if session.method == "oidc":
            groups = await self._confirmations.groups(site, self._proxy, session.token, session)
            if groups is None or isinstance(groups, Deny):
                return groups
            who = self._with(groups, session)
        if site.same_origin and is_unsafe(exchange) and is_cross_site(exchange):
            return Deny(403, "cross_site", "another site's page had a browser send this with its session")
        return who

    def _verified(self, headers: Headers, line: bytes) -> SessionToken | None:
        tokens = find(headers, SESSION)
        if len(tokens) != 1:
            return None
        session = self._tokens.verify(tokens[0], self._key, self._host)
        if session is not None:
            self._tokens.remember(line, self._key, self._host, session)
        return session

    def _with(self, groups: tuple[Group, ...], session: SessionToken) -> Identity:
        """Return the identity of a session with its confirmed groups; the same object for the same groups."""
        confirmed = self._confirmed.get(session.hash)
        if confirmed is None or confirmed[0] is not groups:
            confirmed = self._confirmed.keep(session.hash, (groups, replace(session.identity, groups=groups)))
        return confirmed[1]


class ByHeader:
    """A credential that comes with each request. Right ones are remembered for a while, as an HMAC under a key of this
    process: nothing here can be turned back into a credential, nor tried elsewhere."""

    def __init__(self, site: Site, proxy: Proxy, checker: CredentialChecker, credentials: Credentials) -> None:
        self._site = site
        self._proxy = proxy
        self._checker = checker
        self._credentials = credentials
        self._mapping = secrets.token_bytes(16)  # this object lives as long as the mapping is what it is
        self._names = [(name.lower().encode(), name) for name in site.settings.headers]
        self._flights: SingleFlight[tuple[bytes, str], Login | Deny] = SingleFlight()

    async def identify(self, exchange: ExchangeView) -> Identity | Deny | None:
        if exchange.scheme != "https":
            return None
        for name, spelled in self._names:
            values = exchange.headers.get_all(name)
            if not any(values):
                continue
            if len(values) != 1:
                return self._wrong(exchange, f"{spelled} came {len(values)} times")
            return await self._judged(exchange, name, spelled, values[0])
        return None

    async def _judged(self, exchange: ExchangeView, name: bytes, spelled: str, value: bytes) -> Identity | Deny:
        generation = self._proxy.generation(self._site.account)
        key = self._credentials.key(self._mapping, generation, name, value)
        session = self._credentials.get(key)
        if session is None:
            try:
                text = value.decode()
            except UnicodeDecodeError:
                return self._wrong(exchange, f"{spelled} is not text")
            # A program opens many connections at once with the credential that it has: that is one question, and one
            # try. Of one source, as another may not be held up by this one's guesses.
            login = await self._flights.ask(
                (key, source_at(exchange, self._proxy)),
                lambda: self._ask(exchange, spelled, text),
            )
            if not isinstance(login, Login):
                return login if login.status != 401 else self._wrong(exchange, login.reason)
            session = login.session
            self._credentials.put(key, session)
        return session.identity

    async def _ask(self, exchange: ExchangeView, header: str, text: str) -> Login | Deny:
        """Management compares bytes, and a scheme has no case (RFC 9110 11.1): the usual spelling is tried first."""
        spellings = [text]
        scheme, space, rest = text.partition(" ")
        if header.lower() == "authorization" and space and scheme.lower() in _SCHEMES:
            spellings.insert(0, f"{scheme.title()} {rest}")
        login: Login | Deny | None = None
        for spelling in dict.fromkeys(spellings):
            request = AuthenticateRequest(header_auth=HeaderAuthRequest(header_name=header, header_value=spelling))
            login = await self._checker.authenticate(exchange, self._site, self._proxy, request)
            if isinstance(login, Login) or login.status != 401:
                break
        assert login is not None  # noqa: S101 - there is one spelling at least
        return login

    def _wrong(self, exchange: ExchangeView, reason: str) -> Deny:
        asked = challenges(self._site, exchange)
        return Deny(401, "wrong_credentials", reason, tuple((b"www-authenticate", value) for value in asked))


def challenges(site: Site, exchange: ExchangeView) -> tuple[bytes, ...]:
    """The challenge for a credential in `Authorization`; nothing standard asks for any other header.

    A program is asked for both kinds, as management alone knows which one it is: clients take the one that they have.
    A browser is asked for Basic, with its own window, where there is no page that could ask.
    """
    if not any(name.lower() == "authorization" for name in site.settings.headers):
        return ()
    browser = is_browser(exchange)
    if browser and (site.settings.methods or len(site.settings.headers) > 1):
        return ()
    realm = site.host.encode("ascii")
    basic = b'Basic realm="%b", charset="UTF-8"' % realm
    return (basic,) if browser else (basic, b'Bearer realm="%b"' % realm)


class Credentials:
    """Cache of correct credentials, by their HMAC. Bounded: the oldest entry is dropped first."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock = clock
        self._wall = wall
        self._secret = secrets.token_bytes(32)
        self._sessions: LatestTable[bytes, tuple[SessionToken, float]] = LatestTable(CREDENTIALS)

    def key(self, mapping: bytes, generation: int, name: bytes, value: bytes) -> bytes:
        return hmac.digest(self._secret, b"%b%d:%d:%b%b" % (mapping, generation, len(name), name, value), "sha256")

    def get(self, key: bytes) -> SessionToken | None:
        remembered = self._sessions.get(key)
        if remembered is None or self._clock() >= remembered[1]:
            return None
        return remembered[0]

    def put(self, key: bytes, session: SessionToken) -> None:
        left = min(CREDENTIAL_SECONDS, session.expires_at - self._wall())
        self._sessions.keep(key, (session, self._clock() + left))


class Prompt:
    """Offers the logins of a service, over TLS only."""

    def __init__(self, site: Site, proxy: Proxy, clock: Callable[[], float], providers: Providers) -> None:
        self._site = site
        self._proxy = proxy
        self._clock = clock
        self._providers = providers
        self._provider: tuple[bool, float] | None = None

    async def identify(self, exchange: ExchangeView) -> tuple[Offer, ...] | Deny | Challenge:
        if exchange.scheme != "https":
            return over_tls(exchange)
        to, names = requested_path(exchange), self._site.settings.headers
        try:
            offers = await self.offers(to)
        except ManagementError as error:
            return Deny(503, "management_unavailable", str(error), headers=(retry_after(error.retry_after),))
        if names:
            label = f"A credential in {' or '.join(names)}"
            offers = (*offers, Offer("header", label, action="", challenges=challenges(self._site, exchange)))
        if offers:
            return offers
        return Deny(503, "login_unavailable", "single sign-on is the only way in, and management has no provider")

    async def offers(self, to: str) -> tuple[Offer, ...]:
        """Return the offers. Raises ManagementError if management is needed and cannot be asked."""
        settings = self._site.settings
        hidden = (("to", to),)
        offers = []
        if settings.password:
            field = OfferField("password", "Password", autocomplete="current-password")
            offers.append(Offer("password", "Log in with password", f"{ROOT}/login", (field,), hidden))
        if settings.pin:
            field = OfferField("pin", "PIN", numeric=True)
            offers.append(Offer("pin", "Log in with PIN", f"{ROOT}/login", (field,), hidden))
        if settings.oidc and await self._has_provider(alone=not offers):
            offers.append(
                Offer("oidc", "Log in with single sign-on", with_return_path(f"{ROOT}/start", to), automatic=True)
            )
        return tuple(offers)

    async def _has_provider(self, *, alone: bool) -> bool:
        provider = self._provider
        if provider is None or self._clock() >= provider[1]:
            try:
                there = await self._providers.exists(self._site, self._proxy)
            except ManagementError:
                if alone:
                    raise
                # A question that hangs holds up the page with the other ways: not each of them.
                provider = self._provider = (False, self._clock() + UNKNOWN_SECONDS)
            else:
                provider = self._provider = (there, self._clock() + OFFERED_SECONDS)
        return provider[0]


def over_tls(exchange: ExchangeView) -> Challenge | Deny:
    """Redirect a safe request to the same address over TLS; refuse another one."""
    if is_unsafe(exchange):
        return Deny(403, "tls_required", "logins and sessions require TLS")
    place = b"https://" + bracketed(exchange.host).encode("ascii") + exchange.target
    return Challenge(308, "tls_required", headers=((b"location", place),), reason="asked for without TLS")
