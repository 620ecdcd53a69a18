"""A node of an overlay on the running loop: it listens, dials, and maps addresses to peers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from netbird_overlay.datagrams import DatagramEndpoint, DatagramFactory
from netbird_overlay.driver import Connection, Driver, ProtocolFactory
from netbird_overlay.engine import Endpoint, PeerState
from netbird_overlay.errors import ConnectError, TimedOut, Unreachable
from netbird_overlay.greetings import Greetings
from netbird_overlay.members import Member, plain_address
from netbird_overlay.route_table import RouteTable

HANDSHAKE_WAIT = 5.5
"""Maximum time in seconds that a dial waits for the peer's handshake: long enough for WireGuard's retry after 5 s."""
PATH_WAIT = 15.0
"""Maximum time in seconds that a dial waits for a path to the peer, where paths are made on demand."""
PEERS_A_TURN = 64
"""Maximum number of peers that are added in one turn of the loop: about 8 ms."""
USE_INTERVAL = 1.0
"""Seconds for which the set of peers with open connections is kept: peers may ask for it at any rate."""
KEEPALIVE = 25
"""Seconds between packets to a peer, both ways, as NetBird's agents have it: NATs and firewalls forget idle flows."""

Opened = TypeVar("Opened")
Resolver = Callable[[str], Awaitable[Sequence[str]]]


class Node:
    """One driver and its peers.

    `whois` looks up peers in the engine's table of allowed addresses, which also decides whose packets pass, so the two
    cannot disagree.

    Args:
        addresses: our own overlay addresses, which the engine was configured with.
        keepalive: seconds between packets to a peer once it has shaken hands; 0 for none.
        preshared_key: 32 bytes that all peers share with us, or None.

    Attributes:
        resolve: returns the addresses of a name, or raises ConnectError; None: names cannot be dialed.
        wake: called with a peer's key before each dial, where paths to peers are made on demand. Returns False if no
            path can come. None: peers are reached where the engine knows their endpoint.
        explain: returns why no peer has an address, for errors.
    """

    def __init__(
        self,
        driver: Driver,
        addresses: Sequence[str],
        *,
        keepalive: int = KEEPALIVE,
        preshared_key: bytes | None = None,
    ) -> None:
        self.driver = driver
        self.addresses = tuple(addresses)
        self.resolve: Resolver | None = None
        self.wake: Callable[[bytes], bool] | None = None
        self.explain: Callable[[str], str] = lambda address: "no peer has this address"
        self._keepalive = keepalive
        self._preshared_key = preshared_key
        self._members: dict[bytes, Member] = {}
        self._kept_alive: set[bytes] = set()
        self._routes = RouteTable()
        self._prefixes: dict[bytes, tuple[str, ...]] = {}
        self._used: frozenset[bytes | None] = frozenset()
        self._use_expires = 0.0
        self._withheld: set[bytes] = set()  # carriers of routes to addresses that belong to members now
        self._handshakes: dict[bytes, set[asyncio.Future[None]]] = {}
        self._greetings = Greetings(driver.engine.handshake, self._has_endpoint, driver.touch)

    @property
    def public_key(self) -> bytes:
        return self.driver.engine.public_key

    @property
    def members(self) -> Mapping[bytes, Member]:
        """The peers by public key. Not to be changed."""
        return self._members

    @property
    def routes(self) -> RouteTable:
        return self._routes

    def whois(self, address: str) -> Member | None:
        """Return the peer that has this address now. Accepts any spelling of an IP literal; routes never count."""
        plain = plain_address(address)
        key = self.driver.engine.whois(plain) if plain is not None else None
        member = self._members.get(key) if key is not None else None
        # The engine also knows single addresses that a route leads to.
        return member if member is not None and plain in member.addresses else None

    def carrier(self, address: str) -> bytes | None:
        """Return the key of the peer that packets to this address go to: its owner, or the carrier of a route."""
        plain = plain_address(address)
        if plain is None:
            return None
        member = self.whois(plain)
        return member.key if member is not None else self._routes.carrier(plain)

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        """Accept connections to a port, as far as the engine's inbound rules allow them.

        Only peers are accepted, each from its own addresses. A connection from a network behind a routing peer is
        reset: it would pass for one of the routing peer.
        """
        self.driver.listen(port, protocol_factory, admit=self._owns)

    def listen_datagrams(self, port: int, protocol_factory: DatagramFactory) -> DatagramEndpoint:
        """Receive datagrams of peers to a UDP port, as far as the engine's inbound rules allow them; see `listen`."""
        return self.driver.datagram_endpoint(protocol_factory, port=port, admit=self._owns)

    def _owns(self, key: bytes, address: str) -> bool:
        member = self.whois(address)
        return member is not None and member.key == key

    async def dial(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Open a stream to a peer, to a network behind one, or to a name of the overlay.

        The addresses of a name are tried in order, each within its share of the time.

        Raises ConnectError.
        """

        async def connect(address: str, left: float) -> Connection:
            return await self.driver.connect(protocol_factory, address, port, timeout=left)

        return await self._opened(host, port, timeout, connect)

    async def datagrams(
        self, protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float
    ) -> DatagramEndpoint:
        """Exchange datagrams with a port of a peer, of a network behind one, or of a name of the overlay.

        Nothing shows whether the port has a listener; of a name, the first address with a peer in reach is used.

        Args:
            timeout: maximum time until the peer is in reach, in seconds.

        Raises ConnectError.
        """

        async def connect(address: str, _left: float) -> DatagramEndpoint:
            return self.driver.datagram_endpoint(protocol_factory, remote=(address, port))

        return await self._opened(host, port, timeout, connect)

    async def _opened(
        self, host: str, port: int, timeout: float, connect: Callable[[str, float], Awaitable[Opened]]
    ) -> Opened:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        plain = plain_address(host)
        addresses = [plain] if plain is not None else await self._resolved(host, port, timeout)
        failure: ConnectError = Unreachable(f"dial {host}:{port}: the name has no address")
        for number, address in enumerate(addresses):
            left = max(deadline - loop.time(), 0.001) / (len(addresses) - number)
            until = loop.time() + left
            try:
                await self._make_reachable(address, port, left)
                return await connect(address, max(until - loop.time(), 0.001))
            except ConnectError as exc:
                failure = exc
        raise failure

    async def _resolved(self, name: str, port: int, timeout: float) -> Sequence[str]:
        if self.resolve is None:
            raise Unreachable(f"dial {name}:{port}: the tunnel reaches overlay addresses only, and this is a name")
        try:
            async with asyncio.timeout(timeout):
                return await self.resolve(name)
        except TimeoutError as exc:
            raise TimedOut(f"dial {name}:{port}: the name was not resolved within {timeout:g} s") from exc

    async def _make_reachable(self, address: str, port: int, timeout: float) -> None:
        """Wait until there is a session with the peer that carries packets to an address. Raises Unreachable."""
        where = f"dial [{address}]:{port}" if ":" in address else f"dial {address}:{port}"
        key = self.carrier(address)
        state = self.driver.engine.peer(key) if key is not None else None
        if key is None or state is None:
            raise Unreachable(f"{where}: {self.explain(address)}")
        awaited = self.wake is not None and self.wake(key)
        if not self.connected(state):
            await self._reach(key, state, where, timeout, awaited=awaited)

    async def _reach(self, key: bytes, state: PeerState, where: str, timeout: float, *, awaited: bool) -> None:
        """Wait for a session with a peer.

        It is unreachable at once if no path can come, and after HANDSHAKE_WAIT or PATH_WAIT if it does not answer.
        """
        located = state.endpoint is not None
        if not located and not awaited:
            raise Unreachable(f"{where}: the peer has not connected yet")
        try:
            async with asyncio.timeout(min(timeout, PATH_WAIT if awaited else HANDSHAKE_WAIT)):
                await self.handshaken(key, ask=located)
        except TimeoutError as exc:
            why = "the peer does not answer where it was last seen" if located else "no path to the peer was found"
            raise Unreachable(f"{where}: {why}") from exc

    def connected(self, state: PeerState | None) -> bool:
        """True if we have a session with a peer, and a path to it."""
        return state is not None and state.last_handshake is not None and state.endpoint is not None

    def in_use(self, key: bytes) -> bool:
        """True while a connection with a peer, or with a network behind it, is open, or datagrams pass.

        Up to `USE_INTERVAL` s old.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._use_expires:
            self._use_expires = now + USE_INTERVAL
            self._used = frozenset(map(self.carrier, set(self.driver.remotes())))
        return key in self._used

    def _has_endpoint(self, key: bytes) -> bool:
        state = self.driver.engine.peer(key)
        return state is not None and state.endpoint is not None

    async def handshaken(self, key: bytes, *, ask: bool = False) -> None:
        """Wait for a session with this peer; return at once if one exists. `ask` starts a handshake from our side."""
        if self.connected(self.driver.engine.peer(key)):
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
            if not waiting and self._handshakes.get(key) is waiting:
                del self._handshakes[key]

    def on_path(self, key: bytes) -> None:
        """Let dials go on that waited for a path to this peer, if a session exists."""
        if self.connected(self.driver.engine.peer(key)):
            self._release(key)

    def _release(self, key: bytes) -> None:
        for shaken in self._handshakes.get(key, ()):
            if not shaken.done():
                shaken.set_result(None)

    def on_handshake(self, key: bytes) -> None:
        self._greetings.answered(key)
        self._release(key)
        # Only from now on, so that peers that are away cost nothing.
        if self._keepalive and key in self._members and key not in self._kept_alive:
            self._kept_alive.add(key)
            self._set_peer(key)

    def set_members(self, members: Iterable[Member], endpoints: Mapping[bytes, Endpoint]) -> None:
        """Replace the peers; what did not change is not touched. Connections of peers that left, or that lost the
        address, end, and so do the routes over them.

        Args:
            endpoints: last endpoints of peers that are new to the engine. It sends them a handshake at once, a limited
                number in each turn of the loop, because a peer would continue the session from before our restart, or
                from before it left.
        """
        for _ in self._replacing(members, endpoints):
            pass

    async def replace_members(self, members: Iterable[Member], endpoints: Mapping[bytes, Endpoint]) -> None:
        """Replace the peers like `set_members`, and let the loop do other work in between: each new peer costs the
        cryptography of a key exchange. Peers that left are gone first. A cancellation leaves later peers out.
        """
        for _ in self._replacing(members, endpoints):
            await asyncio.sleep(0)

    def retire(self, members: Iterable[Member]) -> None:
        """Remove the peers, and the addresses of peers, that are not among these members. Adds nothing."""
        roster = {member.key: member for member in members}
        for key, current in list(self._members.items()):
            addresses = roster[key].addresses if key in roster else ()
            kept = tuple(address for address in current.addresses if address in addresses)
            if not kept:
                self._remove(key)
            elif kept != current.addresses:
                self._members[key] = replace(current, addresses=kept)
                self._set_peer(key)
        self.driver.touch()

    def _remove(self, key: bytes) -> None:
        del self._members[key]
        self.driver.engine.remove_peer(key)
        self._kept_alive.discard(key)
        self._withheld.discard(key)

    def _replacing(self, members: Iterable[Member], endpoints: Mapping[bytes, Endpoint]) -> Iterator[None]:
        """Replace the peers, and yield after each `PEERS_A_TURN` of them."""
        roster = {member.key: member for member in members}
        for key in [key for key in self._members if key not in roster]:
            self._remove(key)
        pending = [member for member in roster.values() if self._members.get(member.key) != member]
        for start in range(0, len(pending), PEERS_A_TURN):
            if start:
                yield
            self._update(pending[start : start + PEERS_A_TURN], endpoints)
        for key in [key for key in self._withheld if key in self._members]:
            self._set_peer(key)
        self.driver.touch()

    def _update(self, members: Sequence[Member], endpoints: Mapping[bytes, Endpoint]) -> None:
        greeted = []
        for member in members:
            current = self._members.get(member.key)
            self._members[member.key] = member
            if current is None:
                endpoint = endpoints.get(member.key)
                self._set_peer(member.key, endpoint)
                if endpoint is not None:
                    greeted.append(member.key)
            elif current.addresses != member.addresses:
                self._set_peer(member.key)
            else:
                continue
            self._withheld.update(self._routed_to(member))
        self._greetings.add(greeted, asyncio.get_running_loop().time())
        self.driver.touch()

    def set_routes(self, routes: Mapping[str, bytes]) -> None:
        """Replace the routes: each canonical prefix with the key of the peer that carries it.

        A route over a peer that is no member takes effect when the peer becomes one. Connections over a route that
        moved or ended are closed.

        Raises:
            ValueError: a prefix is invalid; the routes in force stay.
        """
        if routes == self._routes.routes:
            return
        self._routes = RouteTable(routes)
        before, self._prefixes = self._prefixes, self._routes.by_carrier()
        changed = [key for key in before.keys() | self._prefixes.keys() if before.get(key) != self._prefixes.get(key)]
        for key in changed:
            if key in self._members:
                self._set_peer(key)
        self.driver.touch()

    def _set_peer(self, key: bytes, endpoint: Endpoint | None = None) -> None:
        own = self._members[key].addresses
        # A prefix belongs to one peer in the engine, so a route must not take the address of a member.
        routed = self._prefixes.get(key, ())
        prefixes = [prefix for prefix in routed if self._free(prefix)]
        if len(prefixes) == len(routed):
            self._withheld.discard(key)
        else:
            self._withheld.add(key)
        self.driver.engine.set_peer(
            key,
            (*own, *prefixes),
            endpoint=endpoint,
            keepalive=self._keepalive if key in self._kept_alive else None,
            preshared_key=self._preshared_key,
        )

    def _free(self, prefix: str) -> bool:
        address, _, length = prefix.partition("/")
        return length != ("128" if ":" in address else "32") or self.whois(address) is None

    def _routed_to(self, member: Member) -> Iterator[bytes]:
        """Yield the carriers of routes that lead to exactly an address of this member."""
        for address in member.addresses:
            carrier = self._routes.routes.get(f"{address}/{128 if ':' in address else 32}")
            if carrier is not None:
                yield carrier

    async def keep_greeting(self) -> None:
        """Repeat handshakes to peers that have not answered. Never returns."""
        await self._greetings.run()

    def close(self) -> None:
        """Reset every connection and release the socket. Idempotent."""
        self.driver.close()
