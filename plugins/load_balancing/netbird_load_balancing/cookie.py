"""The cookie by which a client keeps its upstream. Its value is a keyed digest, which reveals no address."""

from __future__ import annotations

import hashlib
import hmac

from netbird_proxy import ExchangeView, ResponseHead, RouteSpec, Upstream

PREFIX = "__Host-netbird_lb_"
NOTE = "load_balancing.kept"
"""Key of the note with the upstream that the request's cookie named, if it was picked."""

_ATTRIBUTES = b"; Path=/; Secure; HttpOnly; SameSite=Lax"


class StickyCookie:
    """The cookie of one route.

    Args:
        key: at least 32 bytes. Proxies with the same key understand each other's cookies.
    """

    def __init__(self, key: bytes, route: RouteSpec) -> None:
        scope = b"\0".join((route.account.encode(), route.service.encode(), route.prefix))
        self._name = PREFIX.encode() + _digest(key, b"name", scope)[:8]
        self._values = [
            (upstream, _digest(key, b"value", scope, str(upstream).encode(), upstream.path)[:32])
            for upstream in route.upstreams
        ]
        self._upstreams = {value: upstream for upstream, value in self._values}

    def named_by(self, exchange: ExchangeView) -> Upstream | None:
        """Return the upstream that the request's cookie names; None without a cookie, or with one of no use."""
        for line in exchange.headers.get_all(b"cookie"):
            for part in line.split(b";"):
                name, _, value = part.strip(b" \t").partition(b"=")
                if name == self._name and value in self._upstreams:
                    return self._upstreams[value]
        return None

    def apply(self, exchange: ExchangeView, head: ResponseHead) -> None:
        """Set the cookie for the upstream that answered, unless the request's cookie named it. Only over TLS."""
        if exchange.scheme != "https" or not exchange.tries:
            return
        answered = exchange.tries[-1].upstream
        if exchange.notes.get(NOTE) is answered:
            return
        value = next((value for upstream, value in self._values if upstream is answered), None)
        if value is not None:
            head.add(b"set-cookie", self._name + b"=" + value + _ATTRIBUTES)


def _digest(key: bytes, *parts: bytes) -> bytes:
    """Return 64 hexadecimal digits."""
    return hmac.new(key, b"\0".join(parts), hashlib.sha256).hexdigest().encode()
