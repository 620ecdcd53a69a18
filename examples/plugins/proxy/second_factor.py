"""Asks identified callers to accept the terms of use: a guard may challenge a caller instead of denying it."""

from __future__ import annotations

from typing import Any

from netbird_proxy import (
    ALLOW,
    EXCHANGE_STATE,
    Challenge,
    Endpoint,
    ExchangeView,
    Guard,
    Offer,
    PluginInfo,
    Proxy,
    RouteSpec,
    ServiceMapping,
    Verdict,
    hookimpl,
    is_cross_site,
)

COOKIE = "__Host-terms"
ACCEPT = "/__netbird__/example/accept"


class Terms:
    """Challenges in `authorize`, and stores the consent in a cookie. All other guards must still allow the request."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="asks people to accept the terms of use", cookies=(COOKIE,))

    @hookimpl
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Guard:
        asked = Challenge(401, "terms_required", offers=(Offer("terms", "Accept the terms of use", ACCEPT),))

        async def accepted(exchange: ExchangeView) -> Verdict:
            cookies = b"; ".join(exchange.headers.get_all(b"cookie"))
            return ALLOW if f"{COOKIE}=yes".encode() in cookies.split(b"; ") else asked

        return Guard(accepted)

    @hookimpl
    def endpoint(self, host: ServiceMapping) -> Endpoint:
        return Endpoint(_accept)


async def _accept(scope: dict[str, Any], _receive: object, send: Any) -> None:
    exchange: ExchangeView = scope["state"][EXCHANGE_STATE]
    headers = [(b"content-length", b"0")]
    if scope["path"] != ACCEPT or is_cross_site(exchange):
        status = 404
    else:
        status = 303
        headers.append((b"set-cookie", f"{COOKIE}=yes; Path=/; Secure; HttpOnly; SameSite=Lax".encode()))
        headers.append((b"location", b"/"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
