"""What an exchange is answered that nobody could name, where plugins offer ways to log in."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_proxy.api.model import Challenge, Offer
from netbird_proxy.api.same_origin import is_browser
from netbird_proxy.pipeline.exchange import Exchange

OWN_PATHS = "/__netbird__/"


def are_ways(offers: Sequence[object]) -> bool:
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
    asked = [] if is_browser(exchange) else [value for one in offers for value in one.challenges]
    return Challenge(
        401,
        "login_required" if shown else "credentials_required",
        tuple((b"www-authenticate", value) for value in dict.fromkeys(asked)),
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
