"""A page under `/__netbird__/whose/` of every service's host, which returns the host's name."""

from __future__ import annotations

import json
from typing import Any

from netbird_proxy import EXCHANGE_STATE, Endpoint, ExchangeView, PluginInfo, ServiceMapping, hookimpl


class Whose:
    """Also answers on private services, because it reveals nothing that the caller does not know."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="a page that names its host", notes=("whose",))

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
