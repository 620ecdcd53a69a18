"""What an exchange is answered that nobody could name, where plugins offer ways to log in."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_proxy.exchange import Exchange
from netbird_proxy.model import Challenge, Offer

OWN_PATHS = "/__netbird__/"


def prompt(exchange: Exchange, offers: Sequence[Offer]) -> Challenge:
    """A page with all of them; or, where the only one needs no answer, the way there."""
    only = offers[0] if len(offers) == 1 else None
    if only is not None and only.automatic and navigates(exchange):
        headers = ((b"location", only.action.encode("ascii")), (b"referrer-policy", b"no-referrer"))
        return Challenge(302, "login_required", headers, reason=f"sent to log in by {only.method}")
    return Challenge(401, "login_required", offers=tuple(offers), reason="nobody is known, and a login is offered")


def navigates(exchange: Exchange) -> bool:
    """Whether a browser is on its way to a page: only then is anybody there to log in."""
    if exchange.method != "GET":
        return False
    mode = exchange.headers.get(b"sec-fetch-mode")
    if mode is not None:
        return mode == b"navigate"
    return b"text/html" in (exchange.headers.get(b"accept") or b"").lower()
