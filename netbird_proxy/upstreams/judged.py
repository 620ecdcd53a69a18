"""Enforcement of the operator's address rules for the dialers of all plugins.

A dialer may open its own socket, so the core judges the peer of each stream when the stream opens, and closes a refused
stream before a byte is sent on it. Streams through the tunnel of the route's own account are exempt: the account itself
controls what is reachable there. A stream whose peer is not an internet address (a Unix socket, a transport in memory)
is not judged: the operator, who loads the plugin, decides where it leads.
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
    """A plugin's dialer, restricted by the operator's rules for the route's account. Implements `Dialer`."""

    dialer: Dialer
    judge: AddressJudge

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """See `Dialer.dial`. AddressRefused also if the rules refuse the peer of the stream."""
        judged = JudgedProtocols(protocol_factory, self.judge)
        transport, protocol = await self.dialer.dial(judged, address, timeout=timeout)
        if judged.refusal:
            transport.abort()
            raise AddressRefused(f"dial {address}: {judged.refusal}")
        return transport, protocol


class JudgedProtocols:
    """Makes protocols that get their transport only if the rules allow its peer. Implements `ProtocolFactory`.

    Attributes:
        refusal: the reason why a stream was closed; else empty.
    """

    def __init__(self, protocol_factory: ProtocolFactory, judge: AddressJudge) -> None:
        self.protocol_factory = protocol_factory
        self.judge = judge
        self.refusal = ""

    def __call__(self) -> asyncio.BaseProtocol:
        return _Gate(self)


class _Gate(asyncio.Protocol):
    """Placeholder for a protocol until the peer of its transport is judged."""

    def __init__(self, judged: JudgedProtocols) -> None:
        self._judged = judged

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self._judged.refusal = self._judged.judge.refusal(str(peer[0]), peer[1])
        if self._judged.refusal:
            # Not at once: uvloop leaks a socket that is aborted while it is being opened.
            asyncio.get_running_loop().call_soon(cast(asyncio.Transport, transport).abort)
            return
        protocol = self._judged.protocol_factory()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def exempt(protocol_factory: ProtocolFactory, account: AccountId) -> ProtocolFactory:
    """The unjudged factory, for a stream through an account's own tunnel.

    Raises:
        AddressRefused: the stream is for another account's route.
    """
    if not isinstance(protocol_factory, JudgedProtocols):
        return protocol_factory
    if protocol_factory.judge.account != account:
        raise AddressRefused(f"the tunnel of account {account} does not belong to the route's account")
    return protocol_factory.protocol_factory
