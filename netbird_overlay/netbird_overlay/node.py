"""A node of an overlay on the running loop: it listens, dials, and maps addresses to peers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from netbird_overlay.driver import Connection, Driver, ProtocolFactory
from netbird_overlay.errors import Unreachable
from netbird_overlay.members import Member, plain_address

GREETINGS, GREETING_INTERVAL = 3, 1.0
"""Number and interval in seconds of the handshakes that we repeat to a peer that did not answer the first. WireGuard
itself repeats only after 5 s, in which the peer would continue a session that we do not have."""
HANDSHAKE_WAIT = 5.5
"""Maximum time in seconds that a dial waits for the peer's handshake: long enough for WireGuard's retry after 5 s."""


class Node:
    """One driver and its peers.

    `whois` looks up peers in the engine's table of allowed addresses, which also decides whose packets pass, so the two
    cannot disagree.

    Args:
        addresses: our own overlay addresses, which the engine was configured with.
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
        """Return the peer that has this address now. Accepts any spelling of an IP literal."""
        plain = plain_address(address)
        key = self.driver.engine.whois(plain) if plain is not None else None
        return self._members.get(key) if key is not None else None

    async def dial(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Open a stream to a peer.

        Without a session, a peer is unreachable at once if its endpoint is unknown (its keepalive will reveal it), and
        after HANDSHAKE_WAIT if it does not answer at its last endpoint.

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
        """Wait for a session with this peer; return at once if one exists. `ask` starts a handshake from our side."""
        state = self.driver.engine.peer(key)
        if state is not None and state.last_handshake is not None:
            return
        shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._handshakes.setdefault(key, set())
        waiting.add(shaken)
        try:
            if ask and len(waiting) == 1:  # otherwise a handshake is under way
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
        """Replace the peers. Connections of peers that left, or that lost the address, end.

        Args:
            endpoints: last endpoints of peers that are new to the engine. It sends them a handshake at once, because a
                peer would continue the session from before our restart, or from before it left.
        """
        engine = self.driver.engine
        roster = {member.key: member for member in members}
        for state in engine.peers():
            if state.public_key not in roster:
                engine.remove_peer(state.public_key)
        for key, member in roster.items():
            current = self._members.get(key)
            if current is None:
                engine.set_peer(key, member.addresses, endpoint=endpoints.get(key))
                if key in endpoints:
                    engine.handshake(key)
                    self._greeted[key] = GREETINGS
                    self._greeting.set()
            elif current.addresses != member.addresses:
                engine.set_peer(key, member.addresses)
        self._members = roster
        self.driver.touch()

    async def keep_greeting(self) -> None:
        """Repeat handshakes to peers that have not answered. Never returns."""
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
