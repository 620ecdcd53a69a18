"""Allows all callers to read, and only members of one group to change anything."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from netbird_proxy import ALLOW, Decision, Deny, ExchangeView, Guard, PluginInfo, Proxy, RouteSpec, hookimpl

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class EditorsOptions(BaseModel):
    """`[editors]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = "editors"


class Editors:
    """Requires membership of the group for unsafe methods."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="only one group may change things", options=EditorsOptions)

    @hookimpl
    def authorize(self, route: RouteSpec, proxy: Proxy) -> Guard:
        required = proxy.options(EditorsOptions).group

        async def may(exchange: ExchangeView) -> Decision:
            identity = exchange.identity
            if exchange.method in SAFE or (identity and any(group.name == required for group in identity.groups)):
                return ALLOW
            return Deny(403, "read_only", f"{exchange.method} needs the group {required}")

        return Guard(may)
