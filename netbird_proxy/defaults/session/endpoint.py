"""The endpoint `/__netbird__/session/`: login, return from the identity provider, logout.

Every answer that follows a secret is a redirect to a clean address of this host, so that no secret stays in a browser's
history, in a referrer, or in what is sent again on a reload.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.requests import ClientDisconnect, Request

from netbird_proxy import (
    EXCHANGE_STATE,
    Deny,
    ExchangeView,
    Identity,
    ManagementError,
    Page,
    Proxy,
    is_cross_site,
    retry_after,
)
from netbird_proxy.defaults.session.authenticators import ByCookie, Prompt, over_tls
from netbird_proxy.defaults.session.confirmations import Confirmations
from netbird_proxy.defaults.session.cookies import SESSION, drop_cookie, find, set_cookie
from netbird_proxy.defaults.session.pages import Renderer
from netbird_proxy.defaults.session.return_paths import ROOT, address, own_return_path, with_return_path
from netbird_proxy.defaults.session.sign_on import SignOns
from netbird_proxy.defaults.session.site import CredentialChecker, Login, Site, end_session, source_at
from netbird_wire.proxy_service_pb2 import AuthenticateRequest, PasswordRequest, PinRequest

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
FORM = "application/x-www-form-urlencoded"

NOTICES = {
    "wrong_credentials": "That was not right. Try again.",
    "too_many_starts": "Too many logins were started from your network. Wait a moment, then try again.",
    "too_many_tries": "Too many failed attempts. Wait a moment, then try again.",
    "management_unavailable": "Logins cannot be checked right now. Try again in a moment.",
    "login_failed": "The login could not be completed. Try again.",
    "login_expired": "The login took too long, or was started elsewhere. Try again.",
    "login_canceled": "The login was canceled, or refused by the sign-on service.",
    "logout_failed": "You could not be logged out everywhere right now. Try again in a moment.",
    "logged_out": "You are logged out.",
    "user_unknown": "Your account is not known here.",
    "pending_approval": "Your account is waiting for an administrator's approval.",
    "user_blocked": "Your account is blocked.",
    "not_in_group": "You are not allowed to use this service.",
    "not_allowed": "You are not allowed to use this service.",
}
"""Texts of the pages, by code. No text from outside is ever shown."""
# Descriptions that management puts into a return address, by the letter. Any other description is not repeated.
_ERROR_CODES = {
    "Your account is pending approval by an administrator": "pending_approval",
    "Your account is blocked": "user_blocked",
    "You are not allowed to use this service": "not_allowed",
}
_DENIALS = frozenset(("user_unknown", "pending_approval", "user_blocked", "not_in_group", "not_allowed"))


class LoginEndpoint:
    """An ASGI application for one service's host."""

    def __init__(
        self,
        site: Site,
        proxy: Proxy,
        checker: CredentialChecker,
        confirmations: Confirmations,
        prompt: Prompt,
        pages: Renderer,
        sign_ons: SignOns,
        session: ByCookie,
    ) -> None:
        """
        Args:
            session: identifies a browser that is logged in already.
        """
        self._sign_ons = sign_ons
        self._session = session
        self._site = site
        self._proxy = proxy
        self._checker = checker
        self._confirmations = confirmations
        self._prompt = prompt
        self._pages = pages
        self._places: dict[tuple[str, str], Callable[[Request, ExchangeView], Awaitable[Answer]]] = {
            ("/login", "GET"): self._show,
            ("/login", "POST"): self._login,
            ("/logout", "GET"): self._ask_logout,
            ("/logout", "POST"): self._logout,
        }
        if site.settings.oidc:
            self._places["/start", "GET"] = self._start
            self._places["/return", "GET"] = self._return

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange: ExchangeView = scope["state"][EXCHANGE_STATE]
        request = Request(scope, receive)
        method = "GET" if exchange.method == "HEAD" else exchange.method
        place = self._places.get((scope["path"].removeprefix(scope["root_path"]), method))
        try:
            if place is None:
                answer = self._page(exchange, 404, "no_route", "This page does not exist.")
            elif exchange.scheme != "https":
                answer = self._without_tls(exchange)
            elif method == "POST" and is_cross_site(exchange):
                answer = self._page(exchange, 403, "cross_site", "The request came from another site.")
            else:
                answer = await place(request, exchange)
        except ClientDisconnect:
            return
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # Password and PIN

    async def _show(self, request: Request, exchange: ExchangeView) -> Answer:
        code = request.query_params.get("notice", "")
        notice = NOTICES.get(code, "")
        to = own_return_path(request.query_params.get("to", "/"))
        if code in _DENIALS:
            return self._page(exchange, 403, code, notice, retry=with_return_path(f"{ROOT}/login", to))
        return await self._offers(exchange, to, 200, code if notice else "login_required", notice)

    async def _login(self, request: Request, exchange: ExchangeView) -> Answer:
        form = await _form(request)
        if form is None:
            return self._page(exchange, 415, "not_a_form", "This address accepts a form only.")
        to = own_return_path(form.get("to", "/"))
        settings = self._site.settings
        credential = AuthenticateRequest()
        if settings.password and "password" in form and "pin" not in form:
            credential.password.CopyFrom(PasswordRequest(password=form["password"]))
        elif settings.pin and "pin" in form and "password" not in form:
            credential.pin.CopyFrom(PinRequest(pin=form["pin"]))
        else:
            return await self._offers(exchange, to, 400, "login_failed", NOTICES["login_failed"])
        login = await self._checker.authenticate(exchange, self._site, self._proxy, credential)
        if isinstance(login, Login):
            return self._redirect(address(exchange, to), self._session_cookie(login.token))
        return await self._refused(exchange, to, login, "pin" if "pin" in form else "password")

    async def _refused(self, exchange: ExchangeView, to: str, why: Deny, tried: str) -> Answer:
        if why.code in _DENIALS:
            return self._page(
                exchange, why.status, why.code, NOTICES[why.code], retry=with_return_path(f"{ROOT}/login", to)
            )
        notice = NOTICES.get(why.code, NOTICES["login_failed"])
        answer = await self._offers(exchange, to, why.status, why.code, notice, tried)
        return answer[0], [*answer[1], *why.headers], answer[2]

    async def _offers(
        self, exchange: ExchangeView, to: str, status: int, code: str, notice: str, tried: str = ""
    ) -> Answer:
        try:
            offers = await self._prompt.offers(to)
        except ManagementError:
            status, code, notice, offers = 503, "management_unavailable", NOTICES["management_unavailable"], ()
        page = Page(
            status=status,
            code=code,
            sentence=notice or "Log in to go on.",
            exchange=exchange.id,
            host=exchange.host,
            own_path=f"{ROOT}/login",
            offers=offers,
        )
        made = self._pages.answer(page, exchange, notice=notice, tried=tried)
        return status, made[0], made[1]

    # Single sign-on

    async def _start(self, request: Request, exchange: ExchangeView) -> Answer:
        to = own_return_path(request.query_params.get("to", "/"))
        again = "again" in request.query_params
        if not self._sign_ons.may_begin(source_at(exchange, self._proxy), self._proxy.share):
            back = with_return_path(f"{ROOT}/start", to)
            answer = self._page(exchange, 429, "too_many_tries", NOTICES["too_many_starts"], retry=back)
            return answer[0], [*answer[1], retry_after(1)], answer[2]
        try:
            url, cookies = await self._sign_ons.begin(exchange, self._site, self._proxy, to, again=again)
        except ManagementError as error:
            answer = self._page(
                exchange,
                503,
                "login_unavailable",
                "Single sign-on is not available right now.",
                retry=address(exchange, to),
            )
            return answer[0], [*answer[1], retry_after(error.retry_after)], answer[2]
        return self._redirect(url, *cookies, status=302)

    async def _return(self, request: Request, exchange: ExchangeView) -> Answer:
        query = request.query_params
        proof, again = query.get("f", ""), "again" in query
        begun = self._sign_ons.finish(exchange, proof)
        if begun is None:
            link = self._sign_ons.link(self._site, proof, query.get("to", ""), query.get("m", ""), again=again)
            return await self._return_without_cookie(exchange, link, again=again)
        to, done = begun.to, begun.done
        token = request.query_params.get("session_token", "").encode()
        if not token:
            description = request.query_params.get("error_description", "")
            return self._redirect(_notice(_ERROR_CODES.get(description, "login_canceled"), to), done)
        session = self._checker.tokens.verify(token, self._site.settings.key, self._site.host)
        if session is None or session.method != "oidc":
            return self._redirect(_notice("login_failed", to), done)
        confirmed = await self._confirmations.groups(self._site, self._proxy, token, session)
        if confirmed is None:
            return self._redirect(_notice("login_failed", to), done)
        if isinstance(confirmed, Deny):
            return self._redirect(_notice(confirmed.code, to), done)
        return self._redirect(address(exchange, to), done, self._session_cookie(token))

    async def _return_without_cookie(self, exchange: ExchangeView, link: str | None, *, again: bool) -> Answer:
        """A browser keeps the cookies of a few logins only, and other tabs finish theirs. The token that came along is
        not used: nothing shows that this browser asked for it."""
        if isinstance(await self._session.identify(exchange), Identity):
            return self._redirect(address(exchange, link or "/"))
        if link is None or again:  # a browser that keeps no cookies would go round for ever
            return self._redirect(_notice("login_expired", link or "/"))
        place = with_return_path(f"{ROOT}/start", link)
        return self._redirect(f"{place}{'&' if '?' in place else '?'}again=1")

    # Leaving

    async def _ask_logout(self, _request: Request, exchange: ExchangeView) -> Answer:
        made = self._pages.logout(exchange, f"{ROOT}/logout")
        return 200, made[0], made[1]

    async def _logout(self, _request: Request, exchange: ExchangeView) -> Answer:
        tokens = find(exchange.headers, SESSION)
        if len(tokens) == 1 and self._checker.tokens.verify(tokens[0], self._site.settings.key, self._site.host):
            try:
                await end_session(self._site, self._proxy, tokens[0])
            except ManagementError:
                # Somebody else may have a copy, and would stay in: the person must know, and try again.
                return self._page(
                    exchange, 503, "management_unavailable", NOTICES["logout_failed"], retry=f"{ROOT}/logout"
                )
        return self._redirect(_notice("logged_out", "/"), drop_cookie(SESSION))

    # Answers

    def _session_cookie(self, token: bytes) -> tuple[bytes, bytes]:
        return set_cookie(SESSION, token, self._site.settings.max_age)

    @staticmethod
    def _redirect(place: str, *headers: tuple[bytes, bytes], status: int = 303) -> Answer:
        return (
            status,
            [
                (b"location", place.encode("ascii")),
                (b"content-length", b"0"),
                (b"cache-control", b"no-store"),
                (b"referrer-policy", b"no-referrer"),
                *headers,
            ],
            b"",
        )

    def _without_tls(self, exchange: ExchangeView) -> Answer:
        answer = over_tls(exchange)
        if isinstance(answer, Deny):
            return self._page(exchange, answer.status, answer.code, "This service must be reached over HTTPS.")
        return answer.status, [*answer.headers, (b"content-length", b"0")], b""

    def _page(self, exchange: ExchangeView, status: int, code: str, sentence: str, *, retry: str = "") -> Answer:
        page = Page(
            status=status,
            code=code,
            sentence=sentence,
            exchange=exchange.id,
            host=exchange.host,
            own_path=retry or "/",
            retry=bool(retry),
        )
        made = self._pages.answer(page, exchange)
        return status, made[0], made[1]


def _notice(code: str, to: str) -> str:
    place = f"{ROOT}/login?notice={code if code in NOTICES else 'login_failed'}"
    return place if to == "/" else f"{place}&to={quote(to, safe='/')}"


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form that each came once; None for what is no form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return None
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        return None
    return {name: values[0] for name, values in fields.items() if len(values) == 1}
