"""Our node in one account's overlay, as the proxy uses it: it listens, dials, and knows who may speak from where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from netbird_proxy import Address, DialUnreachable, Peer, ProtocolFactory, PublicKey
from netbird_overlay.driver import Connection, Driver
from netbird_wire.envelope import format_key

GREETINGS, GREETING_INTERVAL = 3, 1.0
"""How often, and after how many seconds, a peer that has not answered our first handshake is sent another. WireGuard
itself waits for 5 s, in which the peer would go on with a session that we do not have; after these, so do we."""
HANDSHAKE_WAIT = 5.5
"""Seconds a dial waits for a peer that has to shake hands first: long enough for WireGuard's retry after 5 s."""


@dataclass(frozen=True, slots=True)
class Member:
    """One remote peer of the account's map."""

    key: bytes
    addresses: tuple[str, ...]
    name: str = ""

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(format_key(self.key))


@lru_cache(maxsize=4096)
def peer_of(member: Member) -> Peer:
    return Peer(member.public_key, member.addresses, member.name)


@lru_cache(maxsize=4096)
def plain_address(text: str) -> str | None:
    """An IP literal in its canonical spelling, v4-mapped ones unmapped; None for anything else, zones included."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    return str(address)


class Changes(AsyncIterator[None]):
    """Tells one consumer that the map changed; what happens before it asks again is one change."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._over = False

    def happened(self) -> None:
        self._changed.set()

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
    """Implements `netbird_proxy.Tunnel` on one driver.

    Who is who is asked of the engine's table of allowed addresses, which is also what decides whose packets pass: the
    two cannot disagree. Names beside it are for people.
    """

    def __init__(self, driver: Driver, addresses: Sequence[str]) -> None:
        self.driver = driver
        self._addresses = tuple(addresses)
        self._members: dict[bytes, Member] = {}
        self._handshakes: dict[bytes, set[asyncio.Future[None]]] = {}
        self._greeted: dict[bytes, int] = {}
        self._greeting = asyncio.Event()
        self._changes = Changes()
        self._watched = False

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(format_key(self.driver.engine.public_key))

    async def listen(self, port: int, protocol_factory: ProtocolFactory) -> Listener:
        self.driver.listen(port, protocol_factory)
        return Listener(self.driver, port)

    def whois(self, address: str) -> Peer | None:
        plain = plain_address(address)
        key = self.driver.engine.whois(plain) if plain is not None else None
        member = self._members.get(key) if key is not None else None
        return peer_of(member) if member is not None else None

    def changes(self) -> AsyncIterator[None]:
        if self._watched:
            raise RuntimeError("the tunnel's changes have a consumer already")
        self._watched = True
        return self._changes

    async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> Connection:
        """Open a stream to a peer of the account.

        A peer that has not shaken hands is unreachable at once if nobody knows where it is (it has to speak first; its
        keepalive will), and after HANDSHAKE_WAIT if it does not answer at the last place known.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        host = plain_address(address.host)
        if host is None:
            raise DialUnreachable(f"dial {address}: the tunnel reaches overlay addresses only, and this is a name")
        engine = self.driver.engine
        key = engine.whois(host)
        state = engine.peer(key) if key is not None else None
        if key is None or state is None:
            raise DialUnreachable(f"dial {address}: no peer of the account has this address")
        if state.last_handshake is None:
            if state.endpoint is None:
                raise DialUnreachable(f"dial {address}: the peer has not connected yet")
            try:
                async with asyncio.timeout(min(timeout, HANDSHAKE_WAIT)):
                    await self.handshaken(key, ask=True)
            except TimeoutError as exc:
                raise DialUnreachable(f"dial {address}: the peer does not answer where it was last seen") from exc
        left = deadline - asyncio.get_running_loop().time()
        return await self.driver.connect(protocol_factory, host, address.port, timeout=max(left, 0.001))

    async def handshaken(self, key: bytes, *, ask: bool = False) -> None:
        """Wait until there is a session with this peer; at once if there is. `ask` starts a handshake from here."""
        state = self.driver.engine.peer(key)
        if state is not None and state.last_handshake is not None:
            return
        shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._handshakes.setdefault(key, set())
        waiting.add(shaken)
        try:
            if ask and len(waiting) == 1:  # else one is under way
                self.driver.engine.handshake(key)
                self.driver.touch()
            await shaken
        finally:
            waiting.discard(shaken)
            if not waiting:
                self._handshakes.pop(key, None)

    # Told by the driver and by the map -----------------------------------------------------------------------------

    def on_handshake(self, key: bytes) -> None:
        self._greeted.pop(key, None)
        for shaken in self._handshakes.get(key, ()):
            if not shaken.done():
                shaken.set_result(None)

    def set_members(self, members: Iterable[Member], endpoints: dict[bytes, tuple[str, int]]) -> None:
        """Make exactly these the peers. Connections of those who left, or lost the address, end.

        Args:
            endpoints: where peers that are new to the engine were last seen; it shakes hands with them at once, since a
                peer would go on with the session it had before our restart, or before it left.
        """
        engine = self.driver.engine
        wanted = {member.key: member for member in members}
        for state in engine.peers():
            if state.public_key not in wanted:
                engine.remove_peer(state.public_key)
        for key, member in wanted.items():
            known = self._members.get(key)
            if known is None:
                engine.set_peer(key, member.addresses, endpoint=endpoints.get(key))
                if key in endpoints:
                    engine.handshake(key)
                    self._greeted[key] = GREETINGS
                    self._greeting.set()
            elif known.addresses != member.addresses:
                engine.set_peer(key, member.addresses)
        self._members = wanted
        self.driver.touch()

    async def keep_greeting(self) -> None:
        """Shake hands again with those whose answer is late. Never returns."""
        while True:
            await self._greeting.wait()
            self._greeting.clear()
            while self._greeted:
                await asyncio.sleep(GREETING_INTERVAL)
                for key, left in list(self._greeted.items()):
                    if left and self.driver.engine.handshake(key):
                        self._greeted[key] = left - 1
                    else:
                        del self._greeted[key]
                self.driver.touch()

    def changed(self) -> None:
        self._changes.happened()

    def close(self) -> None:
        self.driver.close()
        self._changes.end()
