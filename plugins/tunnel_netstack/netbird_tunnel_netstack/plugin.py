"""The hooks of the plugin tunnel_netstack."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from netbird_proxy import AccountHandle, Dialer, PluginInfo, Proxy, RouteSpec, Tunnel, Upstream, hookimpl
from netbird_tunnel_netstack.account import account_tunnel
from netbird_tunnel_netstack.settings import TunnelOptions


class TunnelNetstack:
    """Opens each account's tunnel: a WireGuard node in the account's overlay, in userspace."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-tunnel-netstack"),
            summary="A WireGuard node in each account's overlay, without root, TUN or kernel module",
            options=TunnelOptions,
            # Management withholds targets behind a network from proxies whose tunnel follows no routes.
            capabilities=("routes",),
        )

    @hookimpl
    def open_tunnel(self, account: AccountHandle, proxy: Proxy) -> AbstractAsyncContextManager[Tunnel]:
        return account_tunnel(account, proxy)

    @hookimpl(trylast=True)
    def dialer(self, route: RouteSpec, upstream: Upstream, proxy: Proxy) -> Dialer:
        return proxy.account_dialer(route.account)
