"""The judgement of addresses, held by the core for every plugin's dialer.

A dialer may open its own socket, so the peer of each stream is judged when the stream opens, and a refused one is
closed before a byte is sent on it. Exempt are streams through the route's own account's tunnel: what can be reached
there is the account's affair. A stream whose peer is no internet address (a Unix socket, a transport in memory) has
nothing to judge: where it leads is decided by the operator, who loads the plugin.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast

from netbird_proxy.api.addresses import AddressJudge
from netbird_proxy.api.errors import AddressRefused
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory


@dataclass(frozen=True, slots=True)
class JudgedDialer:
    """A plugin's dialer with the operator's rules for the route's account. Implements `Dialer`."""

    dialer: Dialer
    judge: AddressJudge

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `Dialer.dial`. Raises AddressRefused also where the dialer's own stream was refused."""
        judged = JudgedProtocols(protocol_factory, self.judge)
        transport, protocol = await self.dialer.dial(judged, address, timeout=timeout)
        if judged.refusal:
            transport.abort()
            raise AddressRefused(f"dial {address}: {judged.refusal}")
        return transport, protocol


class JudgedProtocols:
    """Makes protocols that get their transport only if its peer passes. Implements `ProtocolFactory`.

    Attributes:
        refusal: why a stream was closed; empty until then.
    """

    def __init__(self, protocol_factory: ProtocolFactory, judge: AddressJudge) -> None:
        self.protocol_factory = protocol_factory
        self.judge = judge
        self.refusal = ""

    def __call__(self) -> asyncio.BaseProtocol:
        return _Gate(self)


class _Gate(asyncio.Protocol):
    """Stands in for a protocol until the peer of its transport is judged."""

    def __init__(self, judged: JudgedProtocols) -> None:
        self._judged = judged

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self._judged.refusal = self._judged.judge.refusal(str(peer[0]), peer[1])
        if self._judged.refusal:
            # Not now: uvloop loses its grip on a socket that is aborted while it is being opened.
            asyncio.get_running_loop().call_soon(cast(asyncio.Transport, transport).abort)
            return
        protocol = self._judged.protocol_factory()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def exempt(protocol_factory: ProtocolFactory, account: AccountId) -> ProtocolFactory:
    """The factory for a stream through an account's tunnel.

    Raises:
        AddressRefused: the stream is for another account's route.
    """
    if not isinstance(protocol_factory, JudgedProtocols):
        return protocol_factory
    if protocol_factory.judge.account != account:
        raise AddressRefused(f"the tunnel of account {account} is not that of the route")
    return protocol_factory.protocol_factory
