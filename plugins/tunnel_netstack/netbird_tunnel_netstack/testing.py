"""Test support for tunnels: peers in one process over loopback, and a fake management server for the overlay.

All parts are real except management, a `ManagementService` whose answers the test sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from netbird_overlay.membership.testing import FakeManagement, serving
from netbird_overlay.testing import allow_everything_in, introduce, loopback_node
from netbird_proxy import WHOLE, AccountId, PublicKey, Share
from netbird_tunnel_netstack.settings import TunnelOptions
from netbird_tunnel_netstack.tunnel import NetstackTunnel

ACCOUNT = AccountId("acct-1")


# Tunnels without management ---------------------------------------------------------------------------------------


@asynccontextmanager
async def loopback_tunnel(*addresses: str, private_key: bytes | None = None) -> AsyncIterator[NetstackTunnel]:
    """A tunnel on a node with these overlay addresses and no peers, on a UDP port of loopback."""
    async with loopback_node(*addresses, private_key=private_key) as node:
        tunnel = NetstackTunnel(node)
        try:
            yield tunnel
        finally:
            tunnel.close()


@asynccontextmanager
async def tunnel_pair() -> AsyncIterator[tuple[NetstackTunnel, NetstackTunnel]]:
    """A client that has the server's endpoint, and a server that admits the client."""
    async with (
        loopback_tunnel("100.64.0.1", "fd00::1") as client,
        loopback_tunnel("100.64.0.2", "fd00::2") as server,
    ):
        introduce(server.node, client.node, name="client", where=False)
        introduce(client.node, server.node, name="server")
        allow_everything_in(server.node)
        yield client, server


# Management -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FakeChannel:
    """The part of `netbird_proxy.ManagementChannel` that a tunnel uses."""

    channel: grpc.aio.Channel
    extensions: frozenset[str] = frozenset()
    connected: bool = True

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-netbird-proxy-id", "proxy-1"),)

    async def call(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError("a tunnel does not make the proxy's calls")


@dataclass(frozen=True, slots=True)
class FakeAccount:
    """Implements `netbird_proxy.AccountHandle`; registering needs no token."""

    directory: Path
    management: FakeChannel
    server: FakeManagement
    id: AccountId = ACCOUNT
    generation: int = 0
    connections: int = 100

    async def register(self, public_key: PublicKey, *, endpoint: str = "", serves_dns: bool = False) -> None:
        self.server.register(public_key, endpoint)


@asynccontextmanager
async def management_server(directory: Path) -> AsyncIterator[tuple[FakeManagement, FakeAccount]]:
    """A fake management on a loopback port, and an account connected to it."""
    fake = FakeManagement()
    async with serving(fake) as channel:
        yield fake, FakeAccount(directory, FakeChannel(channel), fake)


@dataclass(frozen=True, slots=True)
class FakeProxy:
    """The part of `netbird_proxy.Proxy` that a tunnel uses."""

    tunnel_options: TunnelOptions
    id: str = "proxy-1"
    private: bool = True
    client_addresses_trusted: bool = True
    share: Share = WHOLE
    counted: Counter[str] = field(default_factory=Counter)

    def count(self, name: str, amount: int = 1) -> None:
        self.counted[name] += amount

    def options(self, model: type[Any]) -> Any:
        if model is not TunnelOptions:
            raise LookupError(f"no section of this proxy is a {model.__name__}")
        return self.tunnel_options
