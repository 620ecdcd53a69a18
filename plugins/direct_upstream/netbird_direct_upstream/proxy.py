"""The proxy's half: dials flagged targets from the proxy's machine, if the operator allows the address.

IP literals are checked when the mapping is applied, names at every dial.
"""

from __future__ import annotations

from importlib.metadata import version

from netbird_direct_upstream.settings import FIELD, DirectUpstreamSettings
from netbird_proxy import (
    Claim,
    Dialer,
    NetworkOptions,
    PluginInfo,
    Proxy,
    RouteRefused,
    RouteSpec,
    Upstream,
    hookimpl,
)


class DirectUpstreamOptions(NetworkOptions):
    """`[direct_upstream]` in the settings file."""


class DirectUpstream:
    """Provides the dialer for targets that are flagged `direct_upstream`, and for no others."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-direct-upstream"),
            summary="targets dialed from the proxy's own network, where its operator allows the address",
            claims=(Claim(FIELD),),
            options=DirectUpstreamOptions,
            target_settings=(DirectUpstreamSettings,),
        )

    @hookimpl
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer | None:
        if not upstream.settings(DirectUpstreamSettings).direct:
            return None
        if why := proxy.address_refusal(route.account, upstream.address):
            raise RouteRefused(f"direct upstream {upstream}: {why}")
        return proxy.direct_dialer(route.account)
