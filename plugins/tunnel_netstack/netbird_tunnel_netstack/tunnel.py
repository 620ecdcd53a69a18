"""The tunnel of one account: adapts the library's node to the proxy's interfaces and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache

from netbird_overlay.driver import Connection, Driver
from netbird_overlay.errors import ConnectError, Refused, TimedOut, Unreachable
from netbird_overlay.members import Member
from netbird_overlay.membership.membership import Membership
from netbird_overlay.node import Node
from netbird_proxy import (
    Address,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    Peer,
    ProtocolFactory,
    PublicKey,
    UpstreamError,
)
from netbird_wire.envelope import format_key

DIAL_ERRORS: dict[type[ConnectError], type[UpstreamError]] = {
    Refused: DialRefused,
    Unreachable: DialUnreachable,
    TimedOut: DialTimeout,
}
"""The proxy's error for each failure of a dial; any other becomes `DialFailed`."""


@lru_cache(maxsize=4096)
def peer_of(member: Member) -> Peer:
    return Peer(PublicKey(format_key(member.key)), member.addresses, member.name)


class Changes(AsyncIterator[None]):
    """Notifies one consumer of changes of the map. Changes before its next call count as one."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._over = False

    def happened(self) -> None:
        self._changed.set()

    def forget(self) -> None:
        """Let changes so far count for nothing."""
        self._changed.clear()

    def end(self) -> None:
        self._over = True
        self._changed.set()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> None:
        await self._changed.wait()
        if self._over:
            raise StopAsyncIteration
        self._changed.clear()


class Listener:
    """Implements `netbird_proxy.TunnelListener`."""

    def __init__(self, driver: Driver, port: int) -> None:
        self._driver = driver
        self._port = port
        self._open = True

    def close(self) -> None:
        if self._open:
            self._open = False
            self._driver.unlisten(self._port)


class NetstackTunnel:
    """Implements `netbird_proxy.Tunnel` and `netbird_proxy.Reachability` on one node.

    Args:
        membership: knows what is offline; None for a node without management, to which everything counts as reachable.
        maps: notified of each network map.
        reachability: notified of each change of what can be reached.
    """

    def __init__(
        self,
        node: Node,
        *,
        membership: Membership | None = None,
        maps: Changes | None = None,
        reachability: Changes | None = None,
    ) -> None:
        self.node = node
        self._membership = membership
        self._maps = maps or Changes()
        self._reachability = reachability or Changes()
        self._consumed: set[Changes] = set()

    @property
    def addresses(self) -> Sequence[str]:
        return self.node.addresses

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(format_key(self.node.public_key))

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> Listener:
        self.node.listen(port, protocol_factory)
        return Listener(self.node.driver, port)

    def whois(self, address: str) -> Peer | None:
        member = self.node.whois(address)
        return peer_of(member) if member is not None else None

    def changes(self) -> AsyncIterator[None]:
        return self._consume(self._maps)

    def unreachable(self, address: Address) -> str:
        return self._membership.unreachable(address.host) if self._membership is not None else ""

    def reachability(self) -> AsyncIterator[None]:
        return self._consume(self._reachability)

    def _consume(self, changes: Changes) -> AsyncIterator[None]:
        if changes in self._consumed:
            raise RuntimeError("the tunnel's changes have a consumer already")
        self._consumed.add(changes)
        return changes

    async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> Connection:
        try:
            return await self.node.dial(protocol_factory, address.host, address.port, timeout=timeout)
        except ConnectError as exc:
            raise DIAL_ERRORS.get(type(exc), DialFailed)(str(exc)) from exc

    def changed(self) -> None:
        self._maps.happened()

    def close(self) -> None:
        self.node.close()
        self._maps.end()
        self._reachability.end()
