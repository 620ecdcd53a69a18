"""What all connections of one listener share: the application, the bounds, and who is still here."""

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
from netbird_proxy.http.head import HeadRefused
from netbird_proxy.listening.origins import Origins

_HELD_HEAD_TICK = 0.02  # seconds
_AFTER_ABORT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ListenLimits:
    """What a client may take. Times in seconds, sizes in bytes.

    Attributes:
        connections: open at once; one more is answered 503 and closed, and beyond an eighth more closed only.
        client_connections: of these, what one client may have, with the same answers; a client is an IPv4 address, an
            IPv6 /64, or a peer's overlay address.
        head_timeout: from accepting (or the first byte of a later request) to a complete head; TLS handshakes too.
        head_bytes: of one request's head, and of its trailers.
        head_lines: field lines in one head, and in its trailers.
        idle_timeout: between requests.
        body_idle: how long the application may wait for the next piece of a request body.
        min_rate: bytes a second that a client must send and take at; 0 asks for nothing. See `BodyPatience`.
        min_rate_grace: how long the application may wait for a request body that comes slower.
        body_buffer: request body bytes kept before the transport stops reading.
        drain_bytes: of a body nobody wants that are read and dropped, so that the connection can be kept.
        linger_timeout: how long a closing connection may take to deliver its last bytes and swallow the client's.
        half_close_timeout: how long a request goes on whose client has shut down its sending side and takes nothing. A
            client that left altogether looks the same until something is written to it, so this also bounds that.
        write_timeout: in which a client must take something of what waits for it, at `min_rate`, or counts as gone; who
            has taken next to nothing of the connection so far has `min_rate_grace`.
        pipeline_depth: complete requests waiting behind the one that is served, before the transport stops reading.
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
    """Where lines go; structlog's bound loggers are this."""

    def info(self, event: str, **facts: Any) -> Any: ...
    def error(self, event: str, **facts: Any) -> Any: ...


CountEvent = Callable[[str], Any]
"""Adds one to the counter of that name."""


RecordRefusal = Callable[[Origin, str, HeadRefused], str]
"""Remembers a request that no application sees, with the connection's origin and scheme, and gives its id."""


def unrecorded(_origin: Origin, _scheme: str, _refusal: HeadRefused) -> str:
    """A RecordRefusal for those who remember none."""
    return ""


class Silent:
    """An EventLog for those who keep none."""

    def info(self, event: str, **facts: Any) -> None: ...
    def error(self, event: str, **facts: Any) -> None: ...


def uncounted(name: str) -> None:
    """A CountEvent for those who keep none."""


class Connection(Protocol):
    """What a listener asks of a connection that it accepted."""

    def stop(self) -> None:
        """End as soon as what was begun is answered; at once if nothing was."""

    def abort(self) -> None:
        """End now."""


class Capacity(Enum):
    """Whether a listener has room for one more connection."""

    YES = "yes"
    NO = "no"
    """There is one too many, and it is told so."""
    CROWDED = "crowded"
    """There are so many too many that saying so costs too much."""


class Place(Connection, Protocol):
    """A connection that was counted before its protocol existed, with the answer that it got then."""

    capacity: Capacity


class HeldHead(Protocol):
    """A response whose head waits for its first body bytes."""

    held_at: int

    def flush_head(self) -> None: ...


class Connections:
    """The open connections of one listener, with what they share."""

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
            record_refusal: remembers a request whose head was refused; its id goes into the answer.
            is_trusted_proxy: whether a peer's address is a trusted proxy's, so that many clients come from it.
            listener: its name, for logs and `Origin.listener`.
            account: the tenant whose tunnel this listener is on; None on a host socket.
            tunnel: that tunnel; None on a host socket.
            behind_tls_proxy: the operator declared that TLS ends in front of this listener: requests count as https.
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
        """Each with the client that it is of; "" where there is no telling."""
        self._of_client: dict[str, int] = {}  # nobody is in it with none
        self.tasks: set[asyncio.Task[None]] = set()
        self._empty: asyncio.Future[None] | None = None
        self.held: set[HeldHead] = set()
        self.tick = 0
        self.ticking = False

    def enter(self, connection: Connection, peername: Any) -> Capacity:
        """Count a connection that was accepted; one without room has to be closed. `closed` undoes it.

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
        """Whether many clients stand behind one address. In a tunnel each peer has its own."""
        return self.account is None and (self.behind_tls_proxy or self._is_trusted_proxy(peer))

    def take_over(self, place: Place, connection: Connection) -> Capacity:
        """Count a connection under its protocol from now on. The answer is that of `enter`."""
        self.open[connection] = self.open.pop(place)
        return place.capacity

    def issue(self, transport: asyncio.BaseTransport) -> Origin:
        """An origin for a connection that was just accepted, from its transport's own addresses."""
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
        """The tunnel's peer of a connection, bound once: an address may become another peer's while it is open."""
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
        """End every connection: idle ones now, busy ones once answered, and after `timeout` seconds all that are left.

        Cancellation aborts what is left and goes through.
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
            # Also when this is cancelled: what was cut is still observed before anybody goes on.
            if self.tasks:
                await asyncio.wait(tuple(self.tasks), timeout=_AFTER_ABORT)

    def abort(self) -> None:
        """End every connection and cancel every request now."""
        self.stopping = True
        for connection in tuple(self.open):
            connection.abort()
        for task in tuple(self.tasks):
            task.cancel()

    # A head waits for its first body bytes, so that both leave in one write. Where the body is slow to start (an event
    # stream), the head must not wait with it. One timer for the listener: one a request would cost more than the write.

    def start_ticking(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever adds to `held` calls this unless `ticking`."""
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
    """A socket name as an Address; a v4-mapped one as the IPv4 address that it is."""
    if not isinstance(name, tuple) or len(name) < 2:
        return Address("", 0)
    host = str(name[0])
    if host.lower().startswith("::ffff:") and "." in host:
        host = host[7:]
    return Address(host, int(name[1]))
