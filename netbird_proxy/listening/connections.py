"""The state that all connections of a listener share: the application, the limits, and the set of open connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from netbird_host.sources import source_of
from netbird_proxy.api.model import AccountId, Address, Origin, PublicKey
from netbird_proxy.api.tunnels import Tunnel
from netbird_proxy.asgi import ASGIApp
from netbird_proxy.http.refusals import RefusedHead
from netbird_proxy.listening.origins import Origins

_HELD_HEAD_TICK = 0.02  # seconds
_AFTER_ABORT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ListenLimits:
    """Limits on the resources that clients use. Times in seconds, sizes in bytes.

    Attributes:
        connections: maximum number of open connections; a further one is answered 503 and closed, and closed without
            an answer once there are an eighth more.
        client_connections: maximum number of open connections of one client, with the same answers; a client is an IPv4
            address, an IPv6 /64, or a peer's overlay address.
        head_timeout: maximum time from accepting (or the first byte of a later request) to a complete head, and for a
            TLS handshake.
        head_bytes: maximum size of a request's head, and of its trailers.
        head_lines: maximum number of field lines in a head, and in its trailers.
        idle_timeout: maximum time between requests.
        body_idle: maximum time that the application waits for the next piece of a request body.
        min_rate: bytes a second that a client must send and read at least; 0 for no minimum. See `BodyPatience`.
        min_rate_grace: maximum time that the application waits in total for a request body below that rate.
        body_buffer: bytes of a request body that are buffered before reading from the transport pauses.
        drain_bytes: maximum number of unwanted body bytes to read and drop in order to keep the connection.
        linger_timeout: maximum time for a closing connection to deliver its last bytes and to drop the client's.
        half_close_timeout: maximum time that a request continues after its client has ended its sending side, while
            the client reads nothing. A client that left looks the same until something is written to it.
        write_timeout: maximum time for a client to read waiting data, at `min_rate`; then the client counts as gone. A
            client that has read almost nothing on the connection so far gets `min_rate_grace`.
        pipeline_depth: complete requests that wait behind the present one before reading from the transport pauses.
    """

    connections: int = 10_000
    client_connections: int = 10_000
    head_timeout: float = 10.0
    head_bytes: int = 65536
    head_lines: int = 100
    idle_timeout: float = 75.0
    body_idle: float = 30.0
    min_rate: float = 240.0
    min_rate_grace: float = 10.0
    body_buffer: int = 65536
    drain_bytes: int = 262144
    linger_timeout: float = 5.0
    half_close_timeout: float = 10.0
    write_timeout: float = 60.0
    pipeline_depth: int = 1


class EventLog(Protocol):
    """A logger; structlog's bound loggers implement it."""

    def info(self, event: str, **facts: Any) -> Any: ...
    def error(self, event: str, **facts: Any) -> Any: ...


CountEvent = Callable[[str], Any]
"""Adds 1 to the counter of that name."""


RecordRefusal = Callable[[Origin, str, RefusedHead], str]
"""Remembers a request that never reaches the application, with its connection's origin and scheme. Returns its id."""


def unrecorded(_origin: Origin, _scheme: str, _refusal: RefusedHead) -> str:
    """A RecordRefusal that remembers nothing."""
    return ""


class Silent:
    """An EventLog that drops everything."""

    def info(self, event: str, **facts: Any) -> None: ...
    def error(self, event: str, **facts: Any) -> None: ...


def uncounted(name: str) -> None:
    """A CountEvent that counts nothing."""


class Connection(Protocol):
    """An accepted connection, as its listener uses it."""

    def stop(self) -> None:
        """End after the present request is answered; at once if there is none."""

    def abort(self) -> None:
        """End at once, without an answer."""


class Capacity(Enum):
    """The capacity of a listener for another connection."""

    YES = "yes"
    NO = "no"
    """The limit is reached; the connection is answered 503."""
    CROWDED = "crowded"
    """The limit is far exceeded, so that even answering 503 would cost too much."""


class Place(Connection, Protocol):
    """A connection that is counted before its protocol exists, with the capacity at that time."""

    capacity: Capacity


class HeldHead(Protocol):
    """A response whose head waits for its first body bytes."""

    held_at: int

    def flush_head(self) -> None: ...


class Connections:
    """The open connections of a listener, with their shared state."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Origins,
        listener: str,
        limits: ListenLimits | None = None,
        account: AccountId | None = None,
        tunnel: Tunnel | None = None,
        behind_tls_proxy: bool = False,
        is_trusted_proxy: Callable[[str], bool] = lambda _peer: False,
        count: CountEvent = uncounted,
        log: EventLog | None = None,
        record_refusal: RecordRefusal = unrecorded,
    ) -> None:
        """
        Args:
            record_refusal: remembers a request whose head was refused; its id is sent in the answer.
            is_trusted_proxy: whether a peer's address is a trusted proxy's, so that many clients come from it.
            listener: the listener's name, for logs and `Origin.listener`.
            account: the account whose tunnel this listener is on; None on a host socket.
            tunnel: that tunnel; None on a host socket.
            behind_tls_proxy: a proxy in front of this listener ends TLS, so that requests count as https.
        """
        self.app = app
        self.origins = origins
        self.listener = listener
        self.limits = limits or ListenLimits()
        self.account = account
        self._tunnel = tunnel
        self.behind_tls_proxy = behind_tls_proxy
        self._is_trusted_proxy = is_trusted_proxy
        self.count = count
        self.log: EventLog = log or Silent()
        self.record_refusal = record_refusal
        self.stopping = False
        self.open: dict[Connection, str] = {}
        """Connection → its client; "" where the client is unknown."""
        self._of_client: dict[str, int] = {}  # without clients that have no connection
        self.tasks: set[asyncio.Task[None]] = set()
        self._empty: asyncio.Future[None] | None = None
        self.held: set[HeldHead] = set()
        self.tick = 0
        self.ticking = False

    def enter(self, connection: Connection, peername: Any) -> Capacity:
        """Count a connection that was accepted. The caller closes it unless the capacity is YES. `closed` undoes it.

        Args:
            peername: the client's socket address.
        """
        peer = _address(peername).host
        client = source_of(peer)
        self.open[connection] = client
        capacity = _capacity(len(self.open), self.limits.connections)
        if capacity is not Capacity.YES:
            self.count("connections_refused")
        if client:
            held = self._of_client[client] = self._of_client.get(client, 0) + 1
            if capacity is Capacity.YES and held > self.limits.client_connections and not self._fronted(peer):
                capacity = _capacity(held, self.limits.client_connections)
                self.count("connections_refused_of_client")
        return capacity

    def _fronted(self, peer: str) -> bool:
        """True if many clients connect from this address. In a tunnel each peer has its own address."""
        return self.account is None and (self.behind_tls_proxy or self._is_trusted_proxy(peer))

    def take_over(self, place: Place, connection: Connection) -> Capacity:
        """Count a connection under its protocol from now on. Returns the result of `enter`."""
        self.open[connection] = self.open.pop(place)
        return place.capacity

    def issue(self, transport: asyncio.BaseTransport) -> Origin:
        """Make the origin of a new connection from its transport's own addresses."""
        peer = _address(transport.get_extra_info("peername"))
        return self.origins.issue(
            self.listener,
            self.account,
            peer,
            _address(transport.get_extra_info("sockname")),
            self.behind_tls_proxy,
            self._peer_key(transport, peer),
        )

    def _peer_key(self, transport: asyncio.BaseTransport, peer: Address) -> PublicKey | None:
        """The tunnel's peer of a connection. It is determined once: the address may later belong to another peer."""
        if self._tunnel is None:
            return None
        key = transport.get_extra_info("tunnel_peer")
        if key is not None:
            return PublicKey(key)
        holder = self._tunnel.whois(peer.host)
        return holder.public_key if holder is not None else None

    def closed(self, connection: Connection) -> None:
        if client := self.open.pop(connection, ""):
            held = self._of_client[client] - 1
            if held:
                self._of_client[client] = held
            else:
                del self._of_client[client]
        if self._empty is not None and not self.open and not self._empty.done():
            self._empty.set_result(None)

    async def drain(self, timeout: float) -> None:
        """End every connection: idle ones now, busy ones after their answer, and all after `timeout` seconds.

        Cancellation aborts the remaining connections.
        """
        self.stopping = True
        for connection in tuple(self.open):
            connection.stop()
        try:
            async with asyncio.timeout(timeout):
                if self.open:
                    self._empty = asyncio.get_running_loop().create_future()
                    await self._empty
                if self.tasks:
                    await asyncio.wait(tuple(self.tasks))
        except TimeoutError:
            self.log.info("listener.drain_overran", listener=self.listener, connections=len(self.open))
        finally:
            self.abort()
            # Also on cancellation: observers still see the exchanges that were cut before this returns.
            if self.tasks:
                await asyncio.wait(tuple(self.tasks), timeout=_AFTER_ABORT)

    def abort(self) -> None:
        """End every connection and cancel every request now."""
        self.stopping = True
        for connection in tuple(self.open):
            connection.abort()
        for task in tuple(self.tasks):
            task.cancel()

    # A response head waits for its first body bytes, so that a single write sends both. If the body starts late (an
    # event stream), the head must not wait for it. The listener has one timer for all heads: a timer for each request
    # would cost more than a second write.

    def start_ticking(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the timer; a response that adds itself to `held` calls this unless `ticking`."""
        self.ticking = True
        loop.call_later(_HELD_HEAD_TICK, self._flush_held, loop)

    def _flush_held(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tick += 1
        overdue = [head for head in self.held if head.held_at < self.tick - 1]
        for head in overdue:
            self.held.discard(head)
            head.flush_head()
        self.ticking = bool(self.held)
        if self.ticking:
            loop.call_later(_HELD_HEAD_TICK, self._flush_held, loop)


def _capacity(held: int, limit: int) -> Capacity:
    if held <= limit:
        return Capacity.YES
    return Capacity.NO if held <= limit + max(16, limit // 8) else Capacity.CROWDED


def _address(name: Any) -> Address:
    """A socket name as an Address; a v4-mapped address becomes its IPv4 address."""
    if not isinstance(name, tuple) or len(name) < 2:
        return Address("", 0)
    host = str(name[0])
    if host.lower().startswith("::ffff:") and "." in host:
        host = host[7:]
    return Address(host, int(name[1]))
