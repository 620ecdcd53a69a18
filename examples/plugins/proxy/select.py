"""Sends requests that change something to the first upstream of a path, and all others to its copies."""

from __future__ import annotations

from collections.abc import Sequence

from netbird_proxy import ExchangeView, PluginInfo, RouteSpec, Selector, Upstream, hookimpl


class FirstWrites:
    """For services whose first target is the only one that can be written to."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="writes go to the first upstream, reads to its copies")

    @hookimpl
    def select(self, route: RouteSpec) -> Selector:
        writer, *copies = route.upstreams

        def pick(exchange: ExchangeView, candidates: Sequence[Upstream], _tried: Sequence[Upstream]) -> Upstream:
            if exchange.method not in ("GET", "HEAD"):
                return writer  # not a candidate once it was tried: then the exchange fails, and no copy is written to
            return next((upstream for upstream in candidates if upstream in copies), writer)

        return Selector(pick)
