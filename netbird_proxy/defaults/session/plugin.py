"""The plugin: what each route gets, by what its mapping says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from netbird_proxy import (
    ALLOW,
    Authenticator,
    Claim,
    Deny,
    Endpoint,
    ExchangeView,
    Guard,
    LoginThrottle,
    Page,
    Pages,
    PluginInfo,
    Proxy,
    Rendered,
    RouteSpec,
    ServiceMapping,
    Verdict,
    always,
    hookimpl,
)
from netbird_proxy.defaults.session import sign_on
from netbird_proxy.defaults.session.adoption import NETBIRD, Adoption
from netbird_proxy.defaults.session.authenticators import ByCookie, ByHeader, Credentials, Prompt
from netbird_proxy.defaults.session.confirmations import Confirmations
from netbird_proxy.defaults.session.cookies import SESSION
from netbird_proxy.defaults.session.preflights import Preflights
from netbird_proxy.defaults.session.second_factor import Identify, SecondFactor
from netbird_proxy.defaults.session.settings import FIELDS, SessionSettings
from netbird_proxy.defaults.session.sign_on import SignOns
from netbird_proxy.defaults.session.site import CredentialChecker, Providers, Site
from netbird_proxy.defaults.session.tokens import Tokens

if TYPE_CHECKING:
    from netbird_proxy.defaults.session.pages import Renderer

PLUGIN = "session"
OWN = frozenset((PLUGIN, "private_service"))
"""Plugins whose identities open routes with schemes, in addition to those that the operator names."""


class SessionOptions(BaseModel):
    """`[session]` in the settings file.

    Attributes:
        templates: a directory with templates that replace the built-in pages of the same file name.
        accept: further plugins whose identities count as a login, for services that require one; those of session and
            private_service always do.
        confirm_seconds: maximum time between two confirmations of a single sign-on session by management; on expiry
            the next request causes one.
        stale_seconds: maximum time that a session stays valid without a confirmation while management cannot be
            reached; on expiry its requests are answered 503.
        accept_netbird_sessions: exchange valid `nb_session` cookies of NetBird's own proxy for sessions of this one,
            so that nobody logs in again when it is replaced. A sibling domain can set that cookie: switch this on only
            for the time of the change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    templates: Path | None = None
    accept: tuple[str, ...] = ()
    confirm_seconds: float = Field(60.0, ge=0, le=3600)
    stale_seconds: float = Field(3600.0, ge=0, le=86_400)
    accept_netbird_sessions: bool = False


class Session:
    """Nothing but what the mapping asks for: a route without schemes gets no step at all."""

    def __init__(self) -> None:
        self._checker = CredentialChecker(Tokens(), LoginThrottle(time.monotonic))
        self._credentials = Credentials(time.monotonic, time.time)
        self._providers = Providers(time.monotonic)
        self._sign_ons = SignOns(self._providers)
        self._confirmations: Confirmations | None = None
        self._renderer: Renderer | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            summary="logins by password, PIN, header or single sign-on; sessions; and the pages people see",
            claims=tuple(Claim(field, guards=always) for field in FIELDS),
            cookies=(SESSION.decode(), sign_on.COOKIE.decode() + "*", NETBIRD.decode()),
            options=SessionOptions,
            settings=(SessionSettings,),
        )

    @hookimpl
    def pages(self, proxy: Proxy) -> Pages:
        if proxy.options(SessionOptions).templates is not None:
            self._pages(proxy)  # a template that cannot be used stops the start

        def page(page: Page) -> Rendered:
            return self._pages(proxy).page(page)

        return page

    @hookimpl
    def authenticate(self, route: RouteSpec, proxy: Proxy) -> list[Authenticator]:
        site = Site.of(route)
        if site.settings.private or not site.settings.guards:
            return []
        # Where the tunnel is no login, it is asked first nevertheless: it says who is told to the upstream.
        phase: Literal["prompt", "credential"] = "prompt" if site.ask_for_both else "credential"
        steps = [
            Authenticator(phase, identify, depends_on=site, credentials=site.settings.credentials)
            for identify in self._credential_checks(site, proxy)
        ]
        prompt = self._prompt(site, proxy)
        if site.settings.methods and proxy.options(SessionOptions).accept_netbird_sessions:
            adoption = Adoption(site, proxy, self._checker.tokens, time.time)
            steps.append(Authenticator("credential", adoption.identify, depends_on=site))
        if site.preflight_origins:
            # First of its phase, but not `exclusive`: hosts with such a step have no endpoint for logins.
            steps.insert(0, Authenticator("credential", Preflights(site).identify, depends_on=site))
        return [*steps, Authenticator("prompt", prompt.identify, depends_on=site)]

    def _credential_checks(self, site: Site, proxy: Proxy) -> list[Identify]:
        """Return the authenticators for credentials that a request carries."""
        steps: list[Identify] = []
        if site.settings.methods:
            steps.append(ByCookie(site, proxy, self._checker, self._confirmed(proxy), time.time).identify)
        if site.settings.headers:
            steps.append(ByHeader(site, proxy, self._checker, self._credentials).identify)
        return steps

    @hookimpl
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        site = Site.of(route)
        if not site.settings.guards:
            return None
        accepted = OWN | frozenset(proxy.options(SessionOptions).accept)
        second: SecondFactor | None = None
        if site.ask_for_both:
            second = SecondFactor(self._credential_checks(site, proxy), self._prompt(site, proxy).identify)

        async def require_login(exchange: ExchangeView) -> Verdict:
            who = exchange.identity
            if who is None or who.by not in accepted:
                return Deny(403, "not_allowed", f"nobody logged in: identified by {who.by if who else 'nobody'}")
            if second is not None and who.by != PLUGIN:
                return await second.judge(exchange, who)
            return ALLOW

        return Guard(require_login, depends_on=site, credentials=site.settings.credentials)

    @hookimpl
    def endpoint(self, host: ServiceMapping, proxy: Proxy) -> Endpoint | None:
        site = Site.of(host.routes[0])
        if not site.settings.methods:
            return None
        # Imported with the first service that has logins: without one, a start does not need a web framework.
        from netbird_proxy.defaults.session.endpoint import LoginEndpoint

        place = LoginEndpoint(
            site,
            proxy,
            self._checker,
            self._confirmed(proxy),
            self._prompt(site, proxy),
            self._pages(proxy),
            self._sign_ons,
            ByCookie(site, proxy, self._checker, self._confirmed(proxy), time.time),
        )
        return Endpoint(place, body_bytes=16_384)

    def _prompt(self, site: Site, proxy: Proxy) -> Prompt:
        return Prompt(site, proxy, time.monotonic, self._providers)

    def _confirmed(self, proxy: Proxy) -> Confirmations:
        if self._confirmations is None:
            options = proxy.options(SessionOptions)
            self._confirmations = Confirmations(
                time.monotonic, fresh=options.confirm_seconds, stale=options.stale_seconds
            )
        return self._confirmations

    def _pages(self, proxy: Proxy) -> Renderer:
        if self._renderer is None:
            # Imported with the first page or service with logins: the templates are a tenth of a start.
            from netbird_proxy.defaults.session.pages import Renderer

            self._renderer = Renderer(proxy.options(SessionOptions).templates)
        return self._renderer
