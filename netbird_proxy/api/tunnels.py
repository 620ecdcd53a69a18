"""Dialers and tunnels, which plugins provide: streams to upstreams and through an account's overlay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, runtime_checkable

from netbird_proxy.api.model import Address, Peer, PublicKey

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Dialer(Protocol):
    """Opens streams to upstreams."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Open a plain stream; the caller adds TLS where the target needs it.

        Cancellation closes the stream.

        Args:
            timeout: seconds for all of it: tunnel start, name look-up, handshake; > 0.

        Raises:
            DialTimeout, DialRefused, DialUnreachable, DialFailed, TunnelNotReady, AddressRefused: nothing was sent.
        """


class TunnelListener(Protocol):
    def close(self) -> None:
        """Stop accepting. Accepted connections stay open. Idempotent."""


class Tunnel(Dialer, Protocol):
    """The proxy's node in an account's overlay."""

    @property
    def addresses(self) -> Sequence[str]:
        """The node's own overlay addresses, IPv4 first; constant for the tunnel's life."""

    @property
    def public_key(self) -> PublicKey: ...

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> TunnelListener:
        """Accept streams on a port of all addresses of the node, as far as the account's inbound rules allow.

        Each protocol's transport answers `get_extra_info("peername")` and `("sockname")` with `(host, port)`, and
        `("tunnel_peer")` with the public key (base64) that authenticated the connection. Without such a key the peer
        is the result of `whois` when the connection is accepted.
        """

    def whois(self, address: str) -> Peer | None:
        """The only peer that may send from this address, or None. Management still decides whether to admit it."""

    def changes(self) -> AsyncIterator[None]:
        """Yield after each change of the account's network map. One consumer; changes in between are merged."""


@runtime_checkable
class Reachability(Protocol):
    """A part that a tunnel may have beside those of `Tunnel`: it knows which addresses can be reached now.

    The host recognizes it by its two methods. Without them, every address counts as reachable. Services whose targets
    cannot be reached are reported to management as `tunnel_not_ready`, with the reason, and as active again later.
    Requests do not depend on it: each is tried, and fails with the dial's own error.
    """

    def unreachable(self, address: Address) -> str:
        """Return why a dial to this address would fail now, in a phrase such as `peer alice is offline`.

        Returns "" if the dial would be tried, and where only the dial can tell. Does no I/O: it is called for each
        target of each service, after each change.
        """

    def reachability(self) -> AsyncIterator[None]:
        """Yield after each change of a result of `unreachable`. One consumer; changes in between are merged."""


__all__ = [
    "Dialer",
    "ProtocolFactory",
    "Reachability",
    "Tunnel",
    "TunnelListener",
]
