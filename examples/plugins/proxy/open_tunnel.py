"""A tunnel through an existing interface of this machine, such as the kernel WireGuard's `wg0`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from pydantic import BaseModel, ConfigDict

from netbird_proxy import (
    AccountHandle,
    Address,
    DialFailed,
    DialTimeout,
    Peer,
    PluginInfo,
    ProtocolFactory,
    Proxy,
    PublicKey,
    Tunnel,
    TunnelListener,
    hookimpl,
)


class InterfaceOptions(BaseModel):
    """`[interface]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    account: str = ""
    address: str = "127.0.0.1"
    key: str = ""
    peers: dict[str, str] = {}
    """The public key of each peer, by address."""


class InterfaceTunnel:
    """Implements `Tunnel`. The kernel enforces source addresses, so `whois` may rely on them."""

    def __init__(self, options: InterfaceOptions) -> None:
        self._options = options
        self.addresses: Sequence[str] = (options.address,)
        self.public_key = PublicKey(options.key)

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        loop = asyncio.get_running_loop()
        own = (self._options.address, 0)  # binds to this interface, whatever the routing table
        try:
            async with asyncio.timeout(timeout):
                return await loop.create_connection(protocol_factory, *address, local_addr=own)
        except TimeoutError as error:
            raise DialTimeout(f"dial {address} by the interface: no connection within {timeout:g} s") from error
        except OSError as error:
            raise DialFailed(f"dial {address} by the interface: {error}") from error

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> TunnelListener:
        return await asyncio.get_running_loop().create_server(protocol_factory, self._options.address, port)

    def whois(self, address: str) -> Peer | None:
        key = self._options.peers.get(address)
        return Peer(PublicKey(key), (address,)) if key else None

    async def changes(self) -> AsyncIterator[None]:
        await asyncio.Event().wait()  # the peers are fixed; returning would report the tunnel's end
        yield


class Interface:
    """Opens the tunnel of the account in the settings."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="an interface of this machine as an account's tunnel", options=InterfaceOptions)

    @hookimpl
    def open_tunnel(self, account: AccountHandle, proxy: Proxy) -> AbstractAsyncContextManager[Tunnel] | None:
        options = proxy.options(InterfaceOptions)
        return self._opened(account, options) if account.id == options.account else None

    @asynccontextmanager
    async def _opened(self, account: AccountHandle, options: InterfaceOptions) -> AsyncIterator[Tunnel]:
        await account.register(PublicKey(options.key))
        yield InterfaceTunnel(options)
