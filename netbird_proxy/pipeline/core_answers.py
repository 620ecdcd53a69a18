"""The core's own answers: a code, one sentence and the exchange's id.

An answer never names an address, a plugin, a cause or a group.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from netbird_host.http_fields import retry_after
from netbird_proxy.api.errors import ExchangeError
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Challenge, Deny, Offer
from netbird_proxy.api.same_origin import own_path
from netbird_proxy.api.steps import Page, Pages, Rendered
from netbird_proxy.pipeline.downstream import Downstream
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import can_be_sent, without_others_cookies

NO_ROUTE = Deny(404, "no_route", "no mapping has this host and path")
STARTING = Deny(503, "starting", "not every source has sent its first mappings", headers=(retry_after(2),))
AMBIGUOUS_PATH = Deny(400, "ambiguous_path", "the path can be read in two ways")
SERVER_OPTIONS_HEADERS: list[RawHeader] = [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]
"""Methods of the proxy as a whole, for `OPTIONS *`. Services may support other methods."""
LOOP_DETECTED = Deny(508, "loop_detected", "the request has been through this proxy already")

_SENTENCES = {
    "no_route": "No service answers at this address.",
    "starting": "The proxy is starting. Try again in a moment.",
    "ambiguous_path": "The path can be read in more than one way.",
    "loop_detected": "The request came back to this proxy in a loop.",
    "tunnel_required": "This service is reachable through its private network only.",
    "peer_unknown": "This device is not known to the service's network.",
    "not_in_group": "You are not allowed to use this service.",
    "tls_required": "This service must be reached over HTTPS.",
    "cross_site": "The request came from another site.",
    "login_required": "Log in to go on.",
    "credentials_required": "This service is for programs: it expects a credential in a header.",
    "wrong_credentials": "The credential is wrong.",
    "too_many_tries": "Too many failed attempts. Wait a moment, then try again.",
    "management_unavailable": "Access cannot be checked right now. Try again in a moment.",
    "login_unavailable": "Single sign-on is not available right now. Try again in a moment.",
    "ip_restricted": "This service cannot be reached from your network.",
    "country_restricted": "This service cannot be reached from your country.",
    "geo_unavailable": "This service cannot be reached from your location.",
    "user_unknown": "Your account is not known here.",
    "pending_approval": "Your account is waiting for an administrator's approval.",
    "other_person": "You are logged in as someone other than this device's owner.",
    "user_blocked": "Your account is blocked.",
}
_BY_STATUS = {
    401: "Authentication is required.",
    403: "You are not allowed to use this service.",
    404: "No service answers at this address.",
    421: "The request reached the wrong place.",
    429: "Too many requests.",
}
_CODE = re.compile(r"[a-z0-9_]{1,64}")
_NOT_A_STEPS = frozenset((b"connection", b"content-length", b"content-type", b"transfer-encoding"))
_ALWAYS: list[RawHeader] = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def sentence(status: int, code: str) -> str:
    """Return the sentence that a client gets beside the code. A plugin's own code gets the sentence of its status."""
    return (
        _SENTENCES.get(code)
        or _BY_STATUS.get(status)
        or ("The request was refused." if status < 500 else "The service is not available.")
    )


class PageSource(Protocol):
    """The part of the process's environment that answers need."""

    @property
    def pages(self) -> Pages | None: ...

    @property
    def cookie_owner(self) -> Callable[[bytes], str]: ...

    def page_failed(self, error: BaseException) -> None: ...


async def server_options(exchange: Exchange, downstream: Downstream) -> None:
    """Answer `OPTIONS *`, which is addressed to the proxy itself and to no service (RFC 9110 §9.3.7)."""
    await downstream.start(exchange, 204, list(SERVER_OPTIONS_HEADERS))
    await downstream.finish(b"")


async def refuse(exchange: Exchange, downstream: Downstream, denial: Deny, environment: PageSource) -> None:
    """Answer a guard's refusal."""
    code = denial.code if _CODE.fullmatch(denial.code) else "denied"
    page = _page(exchange, denial.status, code, sentence(denial.status, code))
    if exchange.denial is denial and exchange.trail:
        page = replace(page, by=exchange.trail[-1].plugin)
    await _answer(exchange, downstream, page, denial.headers, environment)


async def challenge(exchange: Exchange, downstream: Downstream, asked: Challenge, environment: PageSource) -> None:
    """Answer with an authenticator's challenge, or with a page of the core if the challenge has no body."""
    if not asked.body:
        code = asked.code if _CODE.fullmatch(asked.code) else "challenge"
        page = _page(exchange, asked.status, code, sentence(asked.status, code), asked.offers)
        await _answer(exchange, downstream, page, asked.headers, environment)
        return
    headers = [
        pair for pair in asked.headers if (name := pair[0].lower()) == b"content-type" or name not in _NOT_A_STEPS
    ]
    headers += [(b"content-length", b"%d" % len(asked.body)), *_ALWAYS]
    await downstream.start(exchange, asked.status, headers)
    await downstream.finish(b"" if exchange.method == "HEAD" else asked.body)


async def fail(
    exchange: Exchange,
    downstream: Downstream,
    error: ExchangeError,
    headers: Iterable[RawHeader],
    environment: PageSource,
) -> None:
    """Answer a failure."""
    page = _page(exchange, error.status, error.code, error.sentence)
    await _answer(exchange, downstream, page, headers, environment)


def _page(exchange: Exchange, status: int, code: str, text: str, offers: tuple[Offer, ...] = ()) -> Page:
    return Page(
        status=status,
        code=code,
        sentence=text,
        exchange=exchange.id,
        host=exchange.host,
        own_path=own_path(exchange.raw_path.decode("latin-1")),
        offers=offers,
        retry=status >= 500 and exchange.method in ("GET", "HEAD"),
    )


async def _answer(
    exchange: Exchange, downstream: Downstream, page: Page, headers: Iterable[RawHeader], environment: PageSource
) -> None:
    kind, body, own = _rendered(exchange, page, environment)
    await downstream.start(
        exchange,
        page.status,
        [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            *_ALWAYS,
            *own,
            *((name.lower(), value) for name, value in headers if name.lower() not in _NOT_A_STEPS),
        ],
    )
    await downstream.finish(b"" if exchange.method == "HEAD" else body)


def _rendered(exchange: Exchange, page: Page, environment: PageSource) -> tuple[bytes, bytes, list[RawHeader]]:
    """Render the page as the client accepts it: HTML for a browser, JSON or plain text for a program."""
    accept = (exchange.headers.get(b"accept") or b"").lower()
    if b"text/html" in accept and environment.pages is not None:
        try:
            rendered = environment.pages(replace(page, offers=tuple(offer for offer in page.offers if offer.action)))
            if not isinstance(rendered, Rendered):
                if inspect.iscoroutine(rendered):
                    rendered.close()  # it would warn that it was never awaited
                raise TypeError(f"the page is {type(rendered).__name__}")
            if not can_be_sent(rendered.headers):
                raise TypeError("the page's headers are not a tuple of (name, value) in bytes")
            own = [(name.lower(), value) for name, value in rendered.headers]
            own = without_others_cookies(own, "", environment.cookie_owner)
            return rendered.content_type, rendered.body, [pair for pair in own if pair[0] not in _NOT_A_STEPS]
        except BaseException as exc:  # synchronous code: no cancellation can arrive here
            environment.page_failed(exc)
    plain = page.for_program(accept)
    return plain.content_type, plain.body, []
