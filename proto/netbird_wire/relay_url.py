"""URLs of relays: `rel://host[:port]` in the clear, `rels://host[:port]` with TLS."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import urlsplit

PATH: Final = "/relay"
"""Target of the WebSocket request at every relay."""
_PORTS: Final = {"rel": 80, "rels": 443}
_MAX_TEXT: Final = 512


class BadRelayUrl(ValueError):
    """Text is not the URL of a relay."""


@dataclass(frozen=True, slots=True)
class RelayUrl:
    """A parsed URL. `text` is its original spelling: servers are compared by it."""

    text: str
    host: str
    port: int
    secure: bool


def parse_relay_url(text: str) -> RelayUrl:
    """Raises BadRelayUrl: another scheme, no host, or any part beside scheme, host and port."""
    if len(text) > _MAX_TEXT or not text.isascii() or not text.isprintable() or any(mark in text for mark in " \\%"):
        raise BadRelayUrl(
            f"a relay's URL is printable ASCII without spaces and escapes, {_MAX_TEXT} characters at most"
        )
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise BadRelayUrl(f"{text!r} is not a URL") from exc
    if parts.scheme not in _PORTS:
        raise BadRelayUrl(f"{text!r}: a relay's URL begins with rel:// or rels://")
    if not host or parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadRelayUrl(f"{text!r}: a relay's URL has a host, a port and nothing else")
    if ":" in host:
        try:
            IPv6Address(host)
        except ValueError as exc:
            raise BadRelayUrl(f"{text!r} is not a URL") from exc
    if port == 0:
        raise BadRelayUrl(f"{text!r}: the port is 1 to 65535")
    return RelayUrl(text, host, port or _PORTS[parts.scheme], parts.scheme == "rels")
