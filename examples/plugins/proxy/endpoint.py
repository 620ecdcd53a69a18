"""A page under `/__netbird__/whose/` of every service's host, which says whose host it is."""

from __future__ import annotations

import json
from typing import Any

from netbird_proxy import EXCHANGE_STATE, Endpoint, ExchangeView, PluginInfo, ServiceMapping, hookimpl


class Whose:
    """Also on private services: it says nothing that a caller has not said before."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="says whose host it is", notes=("whose",))

    @hookimpl
    def endpoint(self, host: ServiceMapping) -> Endpoint:
        async def app(scope: dict[str, Any], _receive: object, send: Any) -> None:
            exchange: ExchangeView = scope["state"][EXCHANGE_STATE]
            exchange.note("whose", host.id)
            status = 200 if scope["path"] == scope["root_path"] + "/" else 404
            body = json.dumps({"host": host.host, "exchange": exchange.id}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return Endpoint(app, on_private=True)
