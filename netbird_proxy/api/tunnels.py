"""Streams to upstreams and through an account's overlay: dialers and tunnels, as plugins provide them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from netbird_proxy.api.model import Address, Peer, PublicKey

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Dialer(Protocol):
    """Opens streams to upstreams."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Open a plain stream; TLS, where wanted, is laid over it by the caller.

        Cancellation closes what was opened.

        Args:
            timeout: seconds for everything that it takes: tunnel start, name look-up, handshake; > 0.

        Raises:
            DialTimeout, DialRefused, DialUnreachable, DialFailed, TunnelNotReady, AddressRefused: nothing was sent.
        """


class TunnelListener(Protocol):
    def close(self) -> None:
        """Accept no more. Connections that were accepted live on. Idempotent."""


class Tunnel(Dialer, Protocol):
    """Our node in one account's overlay."""

    @property
    def addresses(self) -> Sequence[str]:
        """Our own overlay addresses, IPv4 first. They stay for the tunnel's life."""

    @property
    def public_key(self) -> PublicKey: ...

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> TunnelListener:
        """Accept streams on a port of all our addresses, as far as the account's inbound rules let them in.

        Each protocol's transport answers `get_extra_info("peername")` and `("sockname")` with `(host, port)`, and
        `("tunnel_peer")` with the public key (base64) that the connection was authenticated with. Where it has none,
        the peer is the one that `whois` names when the connection is accepted.
        """

    def whois(self, address: str) -> Peer | None:
        """The peer that alone may send from this address, or None. A hit admits nobody: it says whom to ask about."""

    def changes(self) -> AsyncIterator[None]:
        """Yields after each change of the account's map. One consumer; changes in between are one."""


__all__ = [
    "Dialer",
    "ProtocolFactory",
    "Tunnel",
    "TunnelListener",
]
