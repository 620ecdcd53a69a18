"""The allocations at the configured TURN servers, while a session needs one: made, kept and made again on the loop."""

from __future__ import annotations

import asyncio
import math
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.ice.pairs import MAX_RELAYED
from netbird_overlay.paths.servers import TurnServer
from netbird_overlay.paths.turn_connection import TurnAddress, TurnConnection, connect_turn, parse_turn_uri
from netbird_overlay.stun.turn import Allocated, TurnClient
from netbird_wire.backoff import Backoff

_log = structlog.get_logger(__name__)

CONNECT_SECONDS: Final = 5.0
KEEP_SECONDS: Final = 60.0
"""Time for which an allocation stays that no session needs any more: another session often follows."""
FIRST_WAIT, LONGEST_WAIT = 2.0, 120.0
"""Seconds from the end of an allocation to the next attempt, while a session needs it."""


class TurnServers:
    """An allocation at each of the first two servers, shared by all sessions.

    New credentials count from the next allocation on: a server binds an allocation to the user that made it. What goes
    wrong at one server concerns no other, and is logged with the server's own words.

    Args:
        usable: returns True for an address that a relay may have, and that a datagram may come from.
        on_allocated: called with each relayed address of ours.
        on_datagram: called with payload, sender and our relayed address.
        tls: verifies `turns:` servers; None for the system's roots.

    Attributes:
        counters: what was dropped or failed, by reason.
    """

    def __init__(
        self,
        *,
        usable: Callable[[Endpoint], bool],
        on_allocated: Callable[[Endpoint], None],
        on_datagram: Callable[[bytes, Endpoint, Endpoint], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._usable, self._on_allocated, self._on_datagram, self._tls = usable, on_allocated, on_datagram, tls
        self._loop = asyncio.get_running_loop()
        self._servers: dict[str, tuple[TurnAddress, TurnServer]] = {}
        self._live: dict[Endpoint, _Allocation] = {}
        self._users: set[bytes] = set()
        self._unused_since = -math.inf
        self._changed = asyncio.Event()

    def use(self, servers: Sequence[TurnServer]) -> None:
        """Replace the servers. The allocations at servers that stay go on."""
        usable: dict[str, tuple[TurnAddress, TurnServer]] = {}
        for server in servers:
            address = parse_turn_uri(server.uri)
            if address is None:
                self.counters["servers_not_supported"] += 1
            elif len(usable) < MAX_RELAYED:
                usable.setdefault(server.uri, (address, server))
        self._servers = usable
        self._changed.set()

    def need(self, key: bytes) -> list[Endpoint]:
        """A session needs relayed addresses. Returns those that exist; `on_allocated` brings others."""
        if not self._users:
            self._changed.set()
        self._users.add(key)
        return list(self._live)

    def release(self, key: bytes) -> None:
        """A session has ended. Does nothing for one that needed none."""
        if key in self._users:
            self._users.remove(key)
            if not self._users:
                self._unused_since = self._loop.time()
                self._changed.set()

    def send(self, datagram: bytes, endpoint: Endpoint, via: Endpoint, *, channel: bool = False) -> None:
        """Send a datagram from a relayed address; it is lost if the address is gone."""
        allocation = self._live.get(via)
        if allocation is None:
            self.counters["without_allocation"] += 1
        else:
            allocation.send(datagram, endpoint, channel=channel)

    async def run(self) -> None:
        """Never returns; cancellation gives the allocations back."""
        keepers: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                left = self._unused_since + KEEP_SECONDS - self._loop.time()
                needed = self._servers if self._users or left > 0 else {}
                for uri in keepers.keys() - needed.keys():
                    keepers.pop(uri).cancel()
                for uri in needed.keys() - keepers.keys():
                    keepers[uri] = tasks.create_task(self._keep(uri))
                try:
                    async with asyncio.timeout(left if keepers and not self._users else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def _keep(self, uri: str) -> None:
        backoff = Backoff(FIRST_WAIT, LONGEST_WAIT)
        while True:
            began = self._loop.time()
            reason = await self._hold(*self._servers[uri])
            self.counters["allocations_ended"] += 1
            _log.warning("turn.ended", server=uri, reason=reason)
            if self._loop.time() - began > LONGEST_WAIT:
                backoff.reset()
            await asyncio.sleep(backoff.next_wait())
            if uri not in self._servers:
                return

    async def _hold(self, address: TurnAddress, server: TurnServer) -> str:
        """Make an allocation, and keep it. Returns why it ended."""
        allocation = _Allocation(self._loop, self._on_datagram)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await connect_turn(address, allocation.receive, allocation.end, tls=self._tls)
        except (OSError, TimeoutError, UnicodeError) as exc:
            return f"connect: {exc or 'no answer'}"
        client = TurnClient(
            server.user,
            server.password,
            random=secrets.token_bytes,
            usable=self._usable,
            now=self._loop.time(),
            reliable=address.is_stream,
        )
        try:
            allocation.begin(connection, client, self._came)
            return await allocation.ended
        finally:
            if allocation.relayed is not None:
                self._live.pop(allocation.relayed, None)
            allocation.close()
            self.counters.update(client.counters)

    def _came(self, allocation: _Allocation, endpoint: Endpoint) -> None:
        if endpoint in self._live:  # a lie: two servers do not relay at the same address
            allocation.end("allocate: the server relays at an address of another one")
            return
        allocation.relayed = endpoint
        self._live[endpoint] = allocation
        self._on_allocated(endpoint)


class _Allocation:
    """A client with its connection and timer."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_datagram: Callable[[bytes, Endpoint, Endpoint], None]
    ) -> None:
        self.relayed: Endpoint | None = None
        self.ended: asyncio.Future[str] = loop.create_future()
        self._loop, self._on_datagram = loop, on_datagram
        self._connection: TurnConnection | None = None
        self._client: TurnClient | None = None
        self._on_allocated: Callable[[_Allocation, Endpoint], None] = lambda allocation, endpoint: None
        self._timer: asyncio.TimerHandle | None = None

    def begin(
        self,
        connection: TurnConnection,
        client: TurnClient,
        on_allocated: Callable[[_Allocation, Endpoint], None],
    ) -> None:
        self._connection, self._client, self._on_allocated = connection, client, on_allocated
        self._flush()

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def send(self, datagram: bytes, endpoint: Endpoint, *, channel: bool) -> None:
        if self._client is not None:
            self._client.send(datagram, endpoint, self._loop.time(), channel=channel)
            self._flush()

    def receive(self, datagram: bytes) -> None:
        if self._client is None:
            return
        arrived = self._client.receive(datagram, self._loop.time())
        if arrived is not None and self.relayed is not None:
            self._on_datagram(*arrived, self.relayed)
        self._flush()

    def _flush(self) -> None:
        client, connection = self._client, self._connection
        if client is None or connection is None:
            return
        for datagram in client.transmits():
            connection.send(datagram)
        for event in client.events():
            if isinstance(event, Allocated):
                self._on_allocated(self, event.endpoint)
            else:
                self.end(event.reason)
        if self._timer is not None and self._timer.when() <= client.deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if client.deadline < math.inf:
            self._timer = self._loop.call_at(client.deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._client is not None:
            self._client.advance(self._loop.time())
            self._flush()

    def close(self) -> None:
        """Give the allocation back and close the connection."""
        client, connection, self._client = self._client, self._connection, None
        if self._timer is not None:
            self._timer.cancel()
        if client is not None and connection is not None:
            client.release(self._loop.time())
            for datagram in client.transmits():
                connection.send(datagram)
            connection.close()
