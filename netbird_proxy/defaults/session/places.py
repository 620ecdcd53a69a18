"""Where people are sent: only ever to a path of the host that they are on."""

from __future__ import annotations

from urllib.parse import quote

from netbird_proxy import ExchangeView

ROOT = "/__netbird__/session"
LONGEST = 4096


def own_path(text: str) -> str:
    """A path and query of this host that a browser cannot read as another site's; `/` for anything else.

    Browsers take `\\` for `/`, skip tabs and line breaks, and read `//host` as a host.
    """
    if len(text) > LONGEST or not text.startswith("/") or "\\" in text or not all("!" <= c <= "~" for c in text):
        return "/"
    path = "/" + text.lstrip("/")
    return "/" if path.startswith("/__netbird__/") else path


def wanted(exchange: ExchangeView) -> str:
    """Where this exchange wanted to go, in a form that it may be sent back to after a login."""
    path = exchange.raw_path.decode("latin-1")
    query = exchange.query.decode("latin-1")
    return own_path(f"{path}?{query}" if query else path)


def with_wanted(place: str, to: str) -> str:
    return place if to == "/" else f"{place}?to={quote(to, safe='/')}"
