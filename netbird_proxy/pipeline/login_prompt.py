"""What an exchange is answered that nobody could name, where plugins offer ways to log in."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_proxy.api.model import OWN_PATHS, Challenge, Offer
from netbird_proxy.api.same_origin import is_browser
from netbird_proxy.pipeline.exchange import Exchange


def are_valid_offers(offers: Sequence[object]) -> bool:
    """Whether each is a way to log in: one that leads to a plugin of ours, or one that programs go without a page."""
    return bool(offers) and all(
        isinstance(one, Offer) and (one.action.startswith(OWN_PATHS) or not (one.action or one.fields or one.automatic))
        for one in offers
    )


def prompt(exchange: Exchange, offers: Sequence[Offer]) -> Challenge:
    """A page with all of them; or, where the only one needs no answer, the way there. Programs get challenges too."""
    shown = [one for one in offers if one.action]
    only = shown[0] if len(shown) == 1 else None
    if only is not None and only.automatic and navigates(exchange):
        headers = ((b"location", only.action.encode("ascii")), (b"referrer-policy", b"no-referrer"))
        return Challenge(302, "login_required", headers, reason=f"sent to log in by {only.method}")
    challenges = [value for offer in offers for value in offer.challenges]
    if is_browser(exchange):
        # A browser asks for Basic in a window of its own. That stands in front of any page, so only where none asks.
        challenges = [] if shown else [value for value in challenges if value.lower().startswith(b"basic ")]
    return Challenge(
        401,
        "login_required" if shown else "credentials_required",
        tuple((b"www-authenticate", value) for value in dict.fromkeys(challenges)),
        offers=tuple(offers),
        reason="nobody is known, and a login is offered" if shown else "no credential came",
    )


def navigates(exchange: Exchange) -> bool:
    """Whether a browser is on its way to a page: only then is anybody there to log in."""
    if exchange.method != "GET":
        return False
    mode = exchange.headers.get(b"sec-fetch-mode")
    if mode is not None:
        return mode == b"navigate"
    return b"text/html" in (exchange.headers.get(b"accept") or b"").lower()
