"""Preflights of scripts on other sites (CORS): browsers send them without a credential, so no login can judge them."""

from __future__ import annotations

import re

from netbird_proxy import TOKEN_PATTERN, Challenge, ExchangeView
from netbird_proxy.defaults.session.site import Site

_TOKENS = re.compile(rf"{TOKEN_PATTERN}(?:[ \t]*,[ \t]*{TOKEN_PATTERN})*".encode())


class Preflights:
    """Answers the preflights of the origins that a service lists. Nothing reaches the upstream."""

    def __init__(self, site: Site) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in site.preflight_origins)

    async def identify(self, exchange: ExchangeView) -> Challenge | None:
        if exchange.method != "OPTIONS":
            return None
        headers = exchange.headers
        origins = headers.get_all(b"origin")
        methods = headers.get_all(b"access-control-request-method")
        names = headers.get_all(b"access-control-request-headers")
        if len(origins) != 1 or len(methods) != 1 or len(names) > 1 or origins[0] not in self._origins:
            return None
        if not all(_TOKENS.fullmatch(value) for value in (*methods, *names)):
            return None
        answer = [
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-allow-methods", methods[0]),
            (b"vary", b"origin, access-control-request-method, access-control-request-headers"),
            (b"content-type", b"text/plain"),
        ]
        answer += [(b"access-control-allow-headers", value) for value in names]
        return Challenge(200, "preflight", tuple(answer), body=b"\n", reason="a preflight of a listed origin")
