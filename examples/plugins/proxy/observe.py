"""Counts answers by the first digit of their status."""

from __future__ import annotations

from netbird_proxy import ExchangeView, Observer, PluginInfo, Proxy, RouteSpec, hookimpl


class Answers:
    """Counts all answers, also to requests without a route (`route` is None) and to denied ones."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="counts answers by class")

    @hookimpl
    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Observer:
        def count(exchange: ExchangeView) -> None:
            proxy.count(f"answers_{exchange.status // 100}xx")

        return count
