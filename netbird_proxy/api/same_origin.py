"""Defence against requests that another site makes a browser send with the caller's own cookie or address."""

from __future__ import annotations

from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.model import OWN_PATHS

SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
"""Methods that change nothing (RFC 9110 §9.2.1), so that forging such a request gains nothing."""
LONGEST_PATH = 4096
"""Maximum length in characters of a path with query that a browser is sent back to."""


def is_browser(exchange: ExchangeView) -> bool:
    """True where a person may read the answer: then a page asks for a login, never the browser's own dialog."""
    headers = exchange.headers
    if headers.get(b"sec-fetch-mode") is not None or headers.get(b"sec-fetch-site") is not None:
        return True
    return b"text/html" in (headers.get(b"accept") or b"").lower()


def is_unsafe(exchange: ExchangeView) -> bool:
    """True for a request that may change something. An upgrade may: no method describes the bytes that follow it."""
    if exchange.method not in SAFE_METHODS:
        return True
    for name, _ in exchange.headers.raw:  # noqa: SIM110 - runs on each exchange of an identified caller
        if name == b"upgrade":
            return True
    return False


def is_cross_site(exchange: ExchangeView) -> bool:
    """True where a page of another site made the browser send this request.

    A request without `Sec-Fetch-Site` and `Origin` does not come from a browser, so no user was tricked. A sibling of
    this host counts as another site: it may belong to another tenant.
    """
    sites = exchange.headers.get_all(b"sec-fetch-site")
    if sites:
        return any(site not in (b"same-origin", b"none") for site in sites)
    own = f"{exchange.scheme}://".encode() + exchange.authority.lower()
    return any(origin.lower() != own for origin in exchange.headers.get_all(b"origin"))


def own_path(text: str) -> str:
    """A path and query of this host that a browser cannot read as another site's; `/` for anything else.

    The proxy's own paths (`/__netbird__/`) become `/`, too. Browsers read `\\` as `/`, skip tabs and line breaks, and
    read `//host` as a host.
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
