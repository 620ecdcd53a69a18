"""A plugin as it was written for the first version: both halves, public names of that time only.

Nothing here is edited when public names change: an older name stays, as a deprecated alias.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from netbird_management import AccountSnapshot, Service, Violation
from netbird_management import PluginInfo as ManagementPluginInfo
from netbird_management import hookimpl as management_hookimpl
from netbird_proxy import (
    ALLOW,
    EXCHANGE_STATE,
    Decision,
    Deny,
    Endpoint,
    ExchangeView,
    Guard,
    Mapping,
    Observer,
    OutgoingHead,
    PluginInfo,
    Proxy,
    RequestTransform,
    RouteSpec,
    hookimpl,
)


class Options(BaseModel):
    """`[first]` in the proxy's settings file."""

    path: str = "/closed"


class ManagementOptions(BaseModel):
    """`[first]` in management's settings file."""

    name: str = ""


class First:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(version="1", summary="a plugin of the first version", options=Options, notes=("first",))

    @hookimpl
    def restrict(self, route: RouteSpec, proxy: Proxy) -> Guard:
        closed = proxy.options(Options).path.encode()

        async def decide(exchange: ExchangeView) -> Decision:
            exchange.note("first", "seen")
            return Deny(403, "first_closed") if exchange.raw_path.startswith(closed) else ALLOW

        return Guard(decide)

    @hookimpl
    def transform_request(self, route: RouteSpec) -> RequestTransform:
        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            outgoing.set_or_delete(b"x-first", b"stamped")

        return RequestTransform(stamp, owns=(b"x-first",))

    @hookimpl
    def endpoint(self, host: Mapping) -> Endpoint:
        async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
            assert scope["state"][EXCHANGE_STATE] is not None
            body = b"first endpoint"
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return Endpoint(answer)

    @hookimpl
    def observe(self, route: RouteSpec) -> Observer:
        return lambda exchange: None


class FirstManagement:
    @management_hookimpl
    def describe(self) -> ManagementPluginInfo:
        return ManagementPluginInfo(version="1", summary="a plugin of the first version", options=ManagementOptions)

    @management_hookimpl
    def validate_service(
        self, service: Service, previous: Service | None, sent: frozenset[str], account: AccountSnapshot
    ) -> list[Violation]:
        return [Violation("first refuses this name", "name")] if service.name == "refused" else []
