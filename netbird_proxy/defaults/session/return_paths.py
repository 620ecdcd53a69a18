"""Paths to which a browser is sent after a login: only paths of the host that it is on."""

from __future__ import annotations

from urllib.parse import quote

from netbird_proxy import OWN_PATHS, ExchangeView, own_path

ROOT = f"{OWN_PATHS}session"


def own_return_path(text: str) -> str:
    """A path and query of this host as a client sent it, `//x` too; `/` for anything else. See `address`."""
    path = own_path(text)
    if path == "/" or not text.startswith("//"):
        return path
    return text


def bracketed(host: str) -> str:
    """A folded host as it stands in an address: an IPv6 literal in brackets, which it may have already."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def address(exchange: ExchangeView, place: str) -> str:
    """The place as an address that a browser reads as this host's, and with the same bytes."""
    return f"https://{exchange.authority.decode('ascii')}{place}" if place.startswith("//") else place


def requested_path(exchange: ExchangeView) -> str:
    """Where this exchange wanted to go, in a form that it may be sent back to after a login."""
    return own_return_path(exchange.target.decode("latin-1"))


def with_return_path(place: str, to: str) -> str:
    return place if to == "/" else f"{place}?to={quote(to, safe='/')}"
