"""A relay on the running loop: it accepts connections, or adopts those that another server accepted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from netbird_host.sources import Network, is_trusted, source_of
from netbird_relay.admission import Admission
from netbird_relay.connection import CLOSE_SECONDS, RelayConnection
from netbird_relay.conversation import Identity
from netbird_relay.hub import Hub
from netbird_relay.limits import Limits
from netbird_relay.stun import StunServer
from netbird_wire.relay import SERVER_AUTH_TIMEOUT

ACCEPT_PAUSE = 0.5
"""Seconds until the next attempt after a failure to accept: the process has no descriptor left."""
REPORT_SECONDS = 60.0
LIMITS = frozenset(
    {
        "connections",
        "connection_rate",
        "connections_per_address",
        "unauthenticated",
        "unauthenticated_per_address",
        "subscriptions_refused",
        "queue_full",
        "takeovers_refused",
        "unread",
        "stun_refused",
    }
)
"""Counters of limits that were reached. The log reports them once a minute."""

_log = structlog.get_logger(__name__)


class RelayServer:
    """One relay. All methods but `run` are for its own loop.

    Attributes:
        identity: changes take effect for the next Auth.
        connections: all whose sockets are open.
        serving: set when connections are accepted and adopted.
    """

    def __init__(self, identity: Identity, limits: Limits | None = None, trusted: Sequence[Network] = ()) -> None:
        """`trusted` are networks of reverse proxies whose X-Forwarded-For names the client."""
        self.trusted = trusted
        self.hub = Hub(limits or Limits())
        self.identity = identity
        self.admission = Admission(self.hub.limits)
        self.connections: set[RelayConnection] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self.serving = asyncio.Event()
        self._stopping, self._empty = asyncio.Event(), asyncio.Event()
        self._reported: Counter[str] = Counter()

    async def run(
        self,
        listeners: Sequence[socket.socket] = (),
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        stun: Sequence[socket.socket] = (),
    ) -> None:
        """Serve until `stop`, then tell every peer and close. The sockets stay the caller's.

        Args:
            listeners: bound, listening, non-blocking.
            tls: gives the context for each connection of the listeners; None for plain ones.
            stun: bound UDP sockets.
        """
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as self._tasks:
            serving = [self._tasks.create_task(self._accept(listener, tls)) for listener in listeners]
            serving.append(self._tasks.create_task(self._report()))
            for sock in stun:
                stack.callback(StunServer(sock, self.hub.counters).close)
            self.serving.set()
            try:
                await self._stopping.wait()
            finally:
                for task in serving:
                    task.cancel()
                for connection in tuple(self.connections):
                    connection.end("the relay stops")
                if not self.connections:
                    self._empty.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS + 1.0):
                    await self._empty.wait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def stop(self) -> None:
        self._stopping.set()

    def gone(self, connection: RelayConnection) -> None:
        """A connection's socket is closed."""
        self.connections.discard(connection)
        if not self.connections and self._stopping.is_set():
            self._empty.set()

    async def _accept(self, listener: socket.socket, tls: Callable[[], ssl.SSLContext] | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as exc:
                self.hub.counters["accept_failed"] += 1
                _log.warning("relay.accept_failed", error=str(exc))
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            self.adopt(connection, str(address[0]), tls=tls() if tls is not None else None)

    def adopt(self, sock: socket.socket, address: str, *, head: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        """Serve a connected socket, which is the relay's from now on. Over a limit it is closed at once.

        Args:
            sock: non-blocking.
            address: the client's.
            head: bytes that were read from it already, from the request line on.
        """
        group, is_proxy = source_of(address), is_trusted(address, self.trusted)
        refused = "stopping"
        if self._tasks is not None and not self._stopping.is_set():
            refused = self.admission.enter(group, self._now(), is_proxy=is_proxy)
        if refused or self._tasks is None:
            self.hub.counters[refused] += 1
            sock.close()
            return
        self._tasks.create_task(self._connect(sock, RelayConnection(self, address, head), tls))

    async def _connect(self, sock: socket.socket, connection: RelayConnection, tls: ssl.SSLContext | None) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=tls,
                ssl_handshake_timeout=SERVER_AUTH_TIMEOUT if tls is not None else None,
            )
        except (OSError, TimeoutError):  # TLS failures too
            self.hub.counters["tls_failed"] += 1
            sock.close()
            connection.abandon()
            return
        except BaseException:
            sock.close()
            connection.abandon()
            raise

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.report()

    def report(self) -> None:
        """Log the limits that were reached since the last report, and what was relayed."""
        news = self.hub.counters - self._reported
        self._reported = self.hub.counters.copy()
        if reached := {name: count for name, count in sorted(news.items()) if name in LIMITS}:
            _log.warning("relay.limits_reached", **reached)
        if news:
            _log.info("relay.report", peers=len(self.hub.peers), connections=self.admission.open, **dict(news))
