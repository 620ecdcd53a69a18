"""Count answers by the first digit of their status."""

from __future__ import annotations

from netbird_proxy import ExchangeView, Observer, PluginInfo, Proxy, RouteSpec, hookimpl


class Answers:
    """Counts also what found no route (`route` is None then) and whom nobody let in."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="counts answers by class")

    @hookimpl
    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Observer:
        def count(exchange: ExchangeView) -> None:
            proxy.count(f"answers_{exchange.status // 100}xx")

        return count
