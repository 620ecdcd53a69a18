"""Sends the exchange's id to the client, so that a report of a fault can be matched with the proxy's log."""

from __future__ import annotations

from netbird_proxy import ExchangeView, PluginInfo, ResponseHead, ResponseTransform, RouteSpec, hookimpl

HEADER = b"x-request-id"


class AnswerIds:
    """Replaces an upstream's header of this name, and adds it to refusals and errors of the proxy itself."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="sends clients the exchange's id")

    @hookimpl
    def transform_response(self, route: RouteSpec) -> ResponseTransform:
        return ResponseTransform(stamp, owns=(HEADER,), own_answers=True)


def stamp(exchange: ExchangeView, head: ResponseHead) -> None:
    head.set(HEADER, exchange.id.encode())
