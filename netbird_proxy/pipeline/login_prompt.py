"""The answer to an unauthenticated request on a route whose plugins offer logins."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_proxy.api.model import OWN_PATHS, Challenge, Offer
from netbird_proxy.api.same_origin import is_browser
from netbird_proxy.pipeline.exchange import Exchange


def are_valid_offers(offers: Sequence[object]) -> bool:
    """Return whether all are offers of a login: with an endpoint of this proxy, or for programs and without a page."""
    return bool(offers) and all(
        isinstance(offer, Offer)
        and (offer.action.startswith(OWN_PATHS) or not (offer.action or offer.fields or offer.automatic))
        for offer in offers
    )


def prompt(exchange: Exchange, offers: Sequence[Offer]) -> Challenge:
    """Return a 401 page with all offers, or a redirect if the only offer needs no input."""
    shown = [offer for offer in offers if offer.action]
    only = shown[0] if len(shown) == 1 else None
    if only is not None and only.automatic and navigates(exchange):
        headers = ((b"location", only.action.encode("ascii")), (b"referrer-policy", b"no-referrer"))
        return Challenge(302, "login_required", headers, reason=f"sent to log in by {only.method}")
    challenges = [value for offer in offers for value in offer.challenges]
    if is_browser(exchange):
        # A browser asks for Basic credentials in a window in front of the page, so only if the page offers no login.
        challenges = [] if shown else [value for value in challenges if value.lower().startswith(b"basic ")]
    return Challenge(
        401,
        "login_required" if shown else "credentials_required",
        tuple((b"www-authenticate", value) for value in dict.fromkeys(challenges)),
        offers=tuple(offers),
        reason="the caller is not identified, and a login is offered" if shown else "the request has no credential",
    )


def navigates(exchange: Exchange) -> bool:
    """Return whether a browser is opening a page: only then can a person log in."""
    if exchange.method != "GET":
        return False
    mode = exchange.headers.get(b"sec-fetch-mode")
    if mode is not None:
        return mode == b"navigate"
    return b"text/html" in (exchange.headers.get(b"accept") or b"").lower()
