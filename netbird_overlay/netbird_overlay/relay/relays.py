"""All relays of a node on the loop: home, foreign ones, and the peers that are reached through them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from netbird_overlay.relay.client import LeadsElsewhere, RelayConnection, RelayFailed, dial
from netbird_overlay.relay.effects import Announce, Dial, Effect, HangUp, HomeChanged, Offline, Online
from netbird_overlay.relay.links import Links
from netbird_overlay.relay.session import Authenticated, Datagrams, Event
from netbird_wire.backoff import Backoff
from netbird_wire.relay import PeersOffline, PeersOnline, peer_id
from netbird_wire.relay_tokens import RelayToken

_log = structlog.get_logger(__name__)


class Relays:
    """Carries datagrams to peers through relays, while `run` runs.

    Peers are named by their public keys (32 bytes), servers by their instance URLs. Callbacks are called on the loop;
    if one raises, the loop's exception handler reports it, and nothing else is lost.

    Args:
        own_key: our public key, 32 bytes. One key is one client: a relay keeps its newest connection only.
        on_datagrams: called with key, server and the datagrams of a peer with a path, in order.
        on_online: called with key and server when a path is ready.
        on_offline: called with key and server when a path ended, or will not come. `open` must be called again.
        on_home: called when the home relay was reached or lost.
        tls: verifies the relays' certificates; None for the system's roots.
        backoff: the waits between searches for a home relay; None for NetBird's.

    Attributes:
        counters: dropped datagrams and refused requests, by reason.
    """

    def __init__(
        self,
        own_key: bytes,
        *,
        on_datagrams: Callable[[bytes, str, list[bytes]], None],
        on_online: Callable[[bytes, str], None],
        on_offline: Callable[[bytes, str], None],
        on_home: Callable[[], None],
        tls: ssl.SSLContext | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._own_id = peer_id(own_key)
        self._on_datagrams, self._on_online, self._on_offline = on_datagrams, on_online, on_offline
        self._on_home = on_home
        self._tls = tls
        self._links = Links(backoff)
        self._connections: dict[int, RelayConnection] = {}
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self._effects: list[Effect] = []
        self._performing = False
        self.counters: Counter[str] = self._links.counters

    @property
    def home(self) -> str:
        """Instance URL of the home relay, which our offers name; "" while there is none."""
        return self._links.home

    @property
    def home_ip(self) -> bytes:
        """Packed address of the home relay, 4 or 16 bytes; b"" while there is none."""
        return self._links.home_ip

    @property
    def is_on(self) -> bool:
        """True if the configuration has a relay and a token."""
        return self._links.is_on

    def configure(self, urls: Sequence[str], token: RelayToken | None) -> None:
        """Replace the relays and the token. No URLs switch relays off: every path ends. No token keeps the last one."""
        self._links.configure(urls, token, self._now())
        self._wake.set()

    def open(self, key: bytes, server: str, server_ip: bytes = b"") -> None:
        """Ask for a path to a peer at a server. Its on_online or on_offline follows. Idempotent.

        Args:
            server_ip: packed address of the server, as the peer sees it; tried before the URL's name.
        """
        self._links.open(key, server, server_ip, self._now())
        self._wake.set()

    def close(self, key: bytes, server: str) -> None:
        """End a path. No callback follows. Idempotent."""
        self._links.close(key, server)
        self._wake.set()

    def send(self, key: bytes, server: str, datagrams: Sequence[bytes]) -> None:
        """Send datagrams to a peer, in order. Never blocks: without a path, or over its share, they are dropped."""
        route = self._links.route(key, server)
        connection = self._connections.get(route[0]) if route is not None else None
        if route is None or connection is None:
            self.counters["no_path"] += len(datagrams)
        else:
            connection.send(route[1], datagrams)

    async def run(self) -> None:
        """Connect, and keep connected. Never returns; cancellation closes every connection."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                while True:
                    self._wake.clear()
                    self._links.advance(self._now())
                    self._perform()
                    deadline = self._links.deadline
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                            await self._wake.wait()
            finally:
                for task in self._dials.values():
                    task.cancel()
                self._tasks = None

    # Effects -------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _perform(self) -> None:
        """Do what the links ask for, in order, and what callbacks ask for meanwhile."""
        if self._performing or self._tasks is None:
            return
        self._performing = True
        try:
            while effects := self._links.take():
                for effect in effects:
                    self._do(effect, self._tasks)
        finally:
            self._performing = False

    def _changed(self) -> None:
        """Perform what a relay's notice led to before its next one is judged; `run` then follows the deadline."""
        self._perform()
        self._wake.set()

    def _do(self, effect: Effect, tasks: asyncio.TaskGroup) -> None:
        match effect:
            case Dial(link):
                self._dials[link] = tasks.create_task(self._serve(effect))
            case HangUp(link):
                if (task := self._dials.pop(link, None)) is not None:
                    task.cancel()
                if (connection := self._connections.pop(link, None)) is not None:
                    connection.close()
            case Announce(link, peers, subscribe):
                if (connection := self._connections.get(link)) is not None:
                    (connection.subscribe if subscribe else connection.unsubscribe)(peers)
            case Online(key, server, early):
                self._call(self._on_online, key, server)
                if early:
                    self._call(self._on_datagrams, key, server, list(early))
            case Offline(key, server):
                self._call(self._on_offline, key, server)
            case HomeChanged():
                _log.info("relay.home", server=self.home)
                self._call(self._on_home)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception as exc:
            asyncio.get_running_loop().call_exception_handler({"message": "relay: a callback failed", "exception": exc})

    # Connections ---------------------------------------------------------------------------------------------------

    async def _serve(self, effect: Dial) -> None:
        """Dial a link and wait for its end."""
        link = effect.link
        try:
            if self._tls is None and effect.url.secure:
                self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads the system's roots
            factory = partial(
                RelayConnection,
                effect.url,
                self._own_id,
                effect.token,
                on_events=partial(self._events, link),
                on_dropped=self._dropped,
                leads_to=self._same if effect.foreign else None,
            )
            connection = await dial(factory, effect.url, effect.address, self._tls, foreign=effect.foreign)
            try:
                reason = await connection.ended()
            finally:
                connection.close()
        except LeadsElsewhere as exc:
            reason = str(exc)
            if self._dials.pop(link, None) is not None:
                self._links.leads_to(link, exc.link)
                self._changed()
        except RelayFailed as exc:
            reason = str(exc)
        if self._dials.pop(link, None) is not None:
            _log.info("relay.lost", server=effect.url.text, reason=reason)
            self._connections.pop(link, None)
            self._links.lost(link, self._now())
            self._changed()

    def _same(self, connection: RelayConnection) -> int | None:
        """The link whose socket leads to the same address."""
        place = connection.address, connection.port
        return next((link for link, other in self._connections.items() if (other.address, other.port) == place), None)

    def _dropped(self, reason: str, count: int) -> None:
        self.counters[reason] += count

    def _events(self, link: int, connection: RelayConnection, events: list[Event]) -> None:
        for event in events:
            match event:
                case Datagrams(peer, payloads):
                    route = self._links.arrived(link, peer, payloads, self._now())
                    if route is not None:
                        self._call(self._on_datagrams, *route, payloads)
                    continue
                case Authenticated(instance_url):
                    if link not in self._dials:
                        continue
                    self._connections[link] = connection
                    self._links.authenticated(link, instance_url, connection.address, self._now())
                case PeersOnline(peers):
                    self._links.online(link, peers, self._now())
                case PeersOffline(peers):
                    self._links.offline(link, peers)
                case _:
                    continue
            self._changed()
