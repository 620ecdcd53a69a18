"""Requests that other sites make a browser send, with the caller's own cookie or address on them."""

from __future__ import annotations

from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.model import OWN_PATHS

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
"""RFC 9110 §9.2.1: they change nothing, so nothing is gained by forging one."""
LONGEST_PATH = 4096
"""Characters of a path with its query that people are sent back to."""


def is_browser(exchange: ExchangeView) -> bool:
    """Whether a person may be looking on: then a page asks, and never a window of the browser's own."""
    headers = exchange.headers
    if headers.get(b"sec-fetch-mode") is not None or headers.get(b"sec-fetch-site") is not None:
        return True
    return b"text/html" in (headers.get(b"accept") or b"").lower()


def is_unsafe(exchange: ExchangeView) -> bool:
    """Whether it may change something. An upgrade may: what follows it is beyond every method."""
    if exchange.method not in SAFE_METHODS:
        return True
    for name, _ in exchange.headers.raw:  # noqa: SIM110 - asked on each exchange of a caller who is known
        if name == b"upgrade":
            return True
    return False


def is_cross_site(exchange: ExchangeView) -> bool:
    """Whether another site's page had this sent. What says nothing about it is no browser, and nobody was tricked.

    A sibling of this host counts as another site: it may be another tenant's.
    """
    sites = exchange.headers.get_all(b"sec-fetch-site")
    if sites:
        return any(site not in (b"same-origin", b"none") for site in sites)
    own = f"{exchange.scheme}://".encode() + exchange.authority.lower()
    return any(origin.lower() != own for origin in exchange.headers.get_all(b"origin"))


def own_path(text: str) -> str:
    """A path and query of this host that a browser cannot read as another site's; `/` for anything else.

    The proxy's own paths (`/__netbird__/`) are `/` too. Browsers take `\\` for `/`, skip tabs and line breaks, and read
    `//host` as a host.
    """
    plain = text.startswith("/") and "\\" not in text and all("!" <= char <= "~" for char in text)
    if len(text) > LONGEST_PATH or not plain:
        return "/"
    path = "/" + text.lstrip("/")
    return "/" if path.startswith(OWN_PATHS) else path


__all__ = [
    "is_browser",
    "is_cross_site",
    "is_unsafe",
    "own_path",
]
