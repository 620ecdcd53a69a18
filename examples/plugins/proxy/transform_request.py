"""Sends the exchange's id to the upstream, so that its log can be matched with the proxy's."""

from __future__ import annotations

from netbird_proxy import ExchangeView, OutgoingHead, PluginInfo, RequestTransform, RouteSpec, hookimpl

HEADER = b"x-request-id"


class RequestIds:
    """Owns the header, so that the core removes it from clients' requests."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="tells upstreams the exchange's id")

    @hookimpl
    def transform_request(self, route: RouteSpec) -> RequestTransform:
        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            outgoing.set(HEADER, exchange.id.encode())

        return RequestTransform(stamp, owns=(HEADER,))
