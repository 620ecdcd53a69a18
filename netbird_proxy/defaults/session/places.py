"""Where people are sent: only ever to a path of the host that they are on."""

from __future__ import annotations

from urllib.parse import quote

from netbird_proxy import ExchangeView, own_path

ROOT = "/__netbird__/session"


def wanted(exchange: ExchangeView) -> str:
    """Where this exchange wanted to go, in a form that it may be sent back to after a login."""
    path = exchange.raw_path.decode("latin-1")
    query = exchange.query.decode("latin-1")
    return own_path(f"{path}?{query}" if query else path)


def with_wanted(place: str, to: str) -> str:
    return place if to == "/" else f"{place}?to={quote(to, safe='/')}"
