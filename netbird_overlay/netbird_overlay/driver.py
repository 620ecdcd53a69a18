"""Runs an engine on the event loop: gives it a socket and the time, and dispatches its events.

In each turn the driver pumps the socket, takes the events and passes each to its transport. Data that protocols write
meanwhile is flushed by one later `call_soon`, so that the answers to many requests share datagrams and system calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable
from typing import Any

from netbird_overlay.engine import (
    Accepted,
    Closed,
    Connected,
    ConnectFailed,
    Data,
    EndpointChanged,
    Engine,
    EngineError,
    Eof,
    Event,
    Handshake,
    LimitReached,
    NoEndpoint,
    NoRoute,
    Writable,
)
from netbird_overlay.errors import ConnectError, Failed, OverlayError, Refused, TimedOut, Unreachable
from netbird_overlay.transport import TunnelTransport
from netbird_wire.envelope import format_key

BUDGET = 128
"""Maximum number of datagrams a turn: about a millisecond of decryption, then other callbacks of the loop run."""
MIN_SLEEP = 0.001
"""Shortest timer in seconds, so that a deadline in the past does not cause a busy loop."""
SOCKET_BUFFER_BYTES = 4 << 20
"""Requested size of the socket's buffers; an unprivileged process gets at most `net.core.rmem_max`."""

Connection = tuple[asyncio.Transport, asyncio.BaseProtocol]
ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class TunnelBroken(OverlayError):
    """The engine or its socket failed. All its connections have ended."""


class AlreadyListening(OverlayError):
    """The port has a listener already."""


def open_socket(address: str, port: int) -> socket.socket:
    """Open a UDP socket for the engine. An empty address means all addresses, of both families where available.

    Raises OSError if the port is in use.
    """
    family = socket.AF_INET6 if ":" in address or (not address and _has_ipv6()) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address else 0)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


class Driver:
    """Runs one engine on the running loop, from construction to `close`. Owns the socket.

    Args:
        on_handshake: called with a peer's public key after each handshake with it.
        on_endpoint: called with a peer's public key and new endpoint when the endpoint changes.
    """

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        *,
        on_handshake: Callable[[bytes], None] | None = None,
        on_endpoint: Callable[[bytes, tuple[str, int]], None] | None = None,
    ) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._fd = sock.fileno()
        self._on_handshake = on_handshake
        self._on_endpoint = on_endpoint
        self._transports: dict[int, TunnelTransport] = {}
        self._listeners: dict[int, ProtocolFactory] = {}
        self._dials: dict[int, tuple[asyncio.Future[Connection], ProtocolFactory, tuple[str, int]]] = {}
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf  # kept here, because uvloop's handle of a very short timer does not report it
        self._flush_soon: asyncio.Handle | None = None
        self._in_turn = False
        self._dirty = False
        self._blocked = False
        self._ended = asyncio.Event()
        self._failure: Exception | None = None
        self.engine.aggregate(self._fd)
        self.engine.advance(self._loop.time())
        self._loop.add_reader(self._fd, self._turn, BUDGET)
        self.touch()

    @property
    def port(self) -> int:
        """The local UDP port."""
        return int(self._socket.getsockname()[1])

    # Connections ---------------------------------------------------------------------------------------------------

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        """Accept connections to a port, as far as the engine's inbound rules allow them."""
        if port in self._listeners:
            raise AlreadyListening(f"port {port} has a listener already")
        self.engine.listen(port)
        self._listeners[port] = protocol_factory
        self.touch()

    def unlisten(self, port: int) -> None:
        if self._listeners.pop(port, None) is not None and not self._ended.is_set():
            self.engine.unlisten(port)
            self.touch()

    async def connect(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Open a connection to an overlay address. Cancellation resets the connection.

        Raises:
            Refused, Unreachable, TimedOut, Failed.
        """
        where = f"dial {host}:{port}"
        if self._ended.is_set():
            raise Failed(f"{where}: the tunnel is closed")
        try:
            conn = self.engine.connect(host, port, self._loop.time())
        except (NoRoute, NoEndpoint) as exc:
            raise Unreachable(f"{where}: {exc}") from exc
        except LimitReached as exc:
            raise Failed(f"{where}: {exc}") from exc
        except EngineError as exc:
            self._fail(exc)
            raise Failed(f"{where}: {exc}") from exc
        waiter: asyncio.Future[Connection] = self._loop.create_future()
        self._dials[conn] = (waiter, protocol_factory, (host, port))
        self.touch()
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError as exc:
            self._give_up(conn, waiter)
            raise TimedOut(f"{where}: no answer within {timeout:g} s") from exc
        except asyncio.CancelledError:
            self._give_up(conn, waiter)
            raise

    def _give_up(self, conn: int, waiter: asyncio.Future[Connection]) -> None:
        """Reset an abandoned dial, also if it was established at that very moment."""
        self._dials.pop(conn, None)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            waiter.result()[0].abort()
        elif not self._ended.is_set():
            self.engine.abort(conn)
            self.touch()

    def forget(self, conn: int) -> None:
        self._transports.pop(conn, None)

    # Turns ---------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Schedule a flush after a call on the engine, once the current callbacks are done."""
        if self._in_turn:
            self._dirty = True
        elif self._flush_soon is None and not self._ended.is_set():
            self._flush_soon = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_soon = None
        self._turn(0)

    def _on_timer(self) -> None:
        self._timer = None
        self._turn(0)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._blocked = False
        self._turn(0)

    def _turn(self, budget: int) -> None:
        if self._ended.is_set():
            return
        try:
            pumped = self.engine.pump(self._fd, self._loop.time(), budget)
            events = self.engine.events()
        except (EngineError, OSError) as exc:
            self._fail(exc)
            return
        if events:
            self._in_turn = True
            try:
                for event in events:
                    self._dispatch(event)
            finally:
                self._in_turn = False
                if self._dirty:
                    self._dirty = False
                    self.touch()
        if self._ended.is_set():
            return
        if pumped.blocked:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._fd, self._on_writable)
        elif self.engine.pending:
            self.touch()
        if not self._blocked:
            self._arm(self.engine.deadline)

    def _arm(self, deadline: float) -> None:
        """Ensure a timer that is due no later than the deadline.

        An earlier timer is kept: an extra turn costs less than moving the timer in the loop's heap.
        """
        if deadline == math.inf:
            return
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = max(deadline, self._loop.time() + MIN_SLEEP)
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Data(conn, data):
                if (transport := self._transports.get(conn)) is not None:
                    transport.on_data(data)
            case Writable(conn):
                if (transport := self._transports.get(conn)) is not None:
                    transport.on_writable()
            case Eof(conn):
                if (transport := self._transports.get(conn)) is not None:
                    transport.on_eof()
            case Closed(conn, reason):
                if (transport := self._transports.get(conn)) is not None:
                    transport.on_closed(reason)
            case Accepted():
                self._accepted(event)
            case Connected(conn, local):
                self._connected(conn, local)
            case ConnectFailed(conn, reason):
                if (dial := self._dials.pop(conn, None)) is not None and not dial[0].done():
                    dial[0].set_exception(_dial_failure(reason, dial[2]))
            case Handshake(peer):
                if self._on_handshake is not None:
                    self._on_handshake(peer)
            case EndpointChanged(peer, endpoint):
                if self._on_endpoint is not None:
                    self._on_endpoint(peer, endpoint)

    def _accepted(self, event: Accepted) -> None:
        factory = self._listeners.get(event.port)
        if factory is None:  # the listener was closed after the last packet of the TCP handshake
            self.engine.abort(event.conn)
            self.touch()
            return
        extra = {"peername": event.remote, "sockname": event.local, "tunnel_peer": format_key(event.peer)}
        try:
            self._made(event.conn, factory, extra)
        except Exception as exc:  # a failing factory ends its own connection only
            self._loop.call_exception_handler({"message": "tunnel: accepting a connection failed", "exception": exc})

    def _connected(self, conn: int, local: tuple[str, int]) -> None:
        dial = self._dials.pop(conn, None)
        if dial is None or dial[0].done():
            self.engine.abort(conn)
            self.touch()
            return
        waiter, factory, remote = dial
        try:
            waiter.set_result(self._made(conn, factory, {"peername": remote, "sockname": local}))
        except Exception as exc:  # the factory is the dialer's own, so the dialer gets its exception
            waiter.set_exception(exc)

    def _made(self, conn: int, factory: ProtocolFactory, extra: dict[str, Any]) -> Connection:
        try:
            protocol = factory()
        except BaseException:
            self.engine.abort(conn)
            self.touch()
            raise
        transport = self._transports[conn] = TunnelTransport(self, self._loop, conn, protocol, extra)
        try:
            protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    # The end -------------------------------------------------------------------------------------------------------

    async def supervise(self) -> None:
        """Wait until the driver ends. Returns after `close`; raises TunnelBroken if the engine or the socket failed."""
        await self._ended.wait()
        if self._failure is not None:
            raise TunnelBroken(f"the tunnel broke: {self._failure}") from self._failure

    def close(self) -> None:
        """Reset every connection, notify every protocol and release the socket. Idempotent."""
        if self._ended.is_set():
            return
        for transport in list(self._transports.values()):
            transport.abort()
        self._turn(0)  # sends the resets; its events end the transports
        self._end(ConnectionAbortedError("the tunnel was closed"))

    def _fail(self, exc: Exception) -> None:
        if not self._ended.is_set():
            self._failure = exc
            self._end(exc)

    def _end(self, exc: Exception) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._socket.close()
        for handle in (self._timer, self._flush_soon):
            if handle is not None:
                handle.cancel()
        for waiter, _, (host, port) in self._dials.values():
            if not waiter.done():
                waiter.set_exception(Failed(f"dial {host}:{port}: {exc}"))
        self._dials.clear()
        self._listeners.clear()
        for transport in list(self._transports.values()):
            transport.on_broken(exc)


def _dial_failure(reason: str, remote: tuple[str, int]) -> ConnectError:
    kind: type[ConnectError] = {"refused": Refused, "timeout": TimedOut, "local": Failed}.get(reason, Unreachable)
    return kind(f"dial {remote[0]}:{remote[1]} through the tunnel: {reason.replace('_', ' ')}")
