"""A node of an overlay on the running loop: it listens, dials, and knows which peer may speak from which address."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from netbird_overlay.driver import Connection, Driver, ProtocolFactory
from netbird_overlay.errors import Unreachable
from netbird_overlay.members import Member, plain_address

GREETINGS, GREETING_INTERVAL = 3, 1.0
"""How often, and after how many seconds, a peer that has not answered our first handshake is sent another. WireGuard
itself waits for 5 s, in which the peer would go on with a session that we do not have; after these, so do we."""
HANDSHAKE_WAIT = 5.5
"""Seconds a dial waits for a peer that has to shake hands first: long enough for WireGuard's retry after 5 s."""


class Node:
    """One driver and the peers that it was given.

    A peer is looked up in the engine's table of allowed addresses, which is also what decides whose packets pass: the
    two cannot disagree. Names beside it are for people.

    Args:
        addresses: our own; the engine has them already.
    """

    def __init__(self, driver: Driver, addresses: Sequence[str]) -> None:
        self.driver = driver
        self.addresses = tuple(addresses)
        self._members: dict[bytes, Member] = {}
        self._handshakes: dict[bytes, set[asyncio.Future[None]]] = {}
        self._greeted: dict[bytes, int] = {}
        self._greeting = asyncio.Event()

    @property
    def public_key(self) -> bytes:
        return self.driver.engine.public_key

    def whois(self, address: str) -> Member | None:
        """The peer that has this address now; any spelling of an IP literal."""
        plain = plain_address(address)
        key = self.driver.engine.whois(plain) if plain is not None else None
        return self._members.get(key) if key is not None else None

    async def dial(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Open a stream to a peer.

        A peer that has not shaken hands is unreachable at once if nobody knows where it is (it has to speak first; its
        keepalive will), and after HANDSHAKE_WAIT if it does not answer at the last place known.

        Raises ConnectError.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        plain = plain_address(host)
        if plain is None:
            raise Unreachable(f"dial {host}:{port}: the tunnel reaches overlay addresses only, and this is a name")
        where = f"dial [{plain}]:{port}" if ":" in plain else f"dial {plain}:{port}"
        engine = self.driver.engine
        key = engine.whois(plain)
        state = engine.peer(key) if key is not None else None
        if key is None or state is None:
            raise Unreachable(f"{where}: no peer has this address")
        if state.last_handshake is None:
            if state.endpoint is None:
                raise Unreachable(f"{where}: the peer has not connected yet")
            try:
                async with asyncio.timeout(min(timeout, HANDSHAKE_WAIT)):
                    await self.handshaken(key, ask=True)
            except TimeoutError as exc:
                raise Unreachable(f"{where}: the peer does not answer where it was last seen") from exc
        left = deadline - asyncio.get_running_loop().time()
        return await self.driver.connect(protocol_factory, plain, port, timeout=max(left, 0.001))

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

    def close(self) -> None:
        """Reset every connection and release the socket. Idempotent."""
        self.driver.close()
