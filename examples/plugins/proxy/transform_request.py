"""Tell the upstream the exchange's id, so that its log and ours meet."""

from __future__ import annotations

from netbird_proxy import ExchangeView, OutgoingHead, PluginInfo, RequestTransform, RouteSpec, hookimpl

HEADER = b"x-request-id"


class RequestIds:
    """Owns the header: what clients put there never arrives."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="tells upstreams the exchange's id")

    @hookimpl
    def transform_request(self, route: RouteSpec) -> RequestTransform:
        def stamp(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            outgoing.set(HEADER, exchange.id.encode())

        return RequestTransform(stamp, owns=(HEADER,))
