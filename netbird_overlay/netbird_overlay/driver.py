"""The engine's place on the event loop: its socket, its clock, and who hears its events.

A turn is: pump the socket, take the events, hand each to its transport. Whatever protocols write meanwhile is flushed
by one `call_soon` behind them, so that the answers of many requests share their datagrams and system calls.
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
"""Datagrams a turn: about a millisecond of decryption, then the loop is everybody's again."""
MIN_SLEEP = 0.001
"""No timer is set nearer than this: a deadline in the past must not become a busy loop."""
SOCKET_BUFFER_BYTES = 4 << 20
"""Asked for; an unprivileged process gets what `net.core.rmem_max` allows."""

Connection = tuple[asyncio.Transport, asyncio.BaseProtocol]
ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class TunnelBroken(OverlayError):
    """The engine or its socket cannot be used any more. Everything on it has ended."""


class AlreadyListening(OverlayError):
    """The port has a listener."""


def open_socket(address: str, port: int) -> socket.socket:
    """A UDP socket for the engine. Empty address: all of them, both families where the machine has both.

    Raises OSError if the port is taken.
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
        on_handshake: told the public key of a peer each time a session with it is made.
        on_endpoint: told where a peer speaks from, when that changes.
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
        self._timer_at = math.inf  # kept here: uvloop's handle of a very near timer does not know
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
        """The UDP port that peers reach us at."""
        return int(self._socket.getsockname()[1])

    # Connections ---------------------------------------------------------------------------------------------------

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        """Serve what comes in on a port, as far as the engine's inbound rules let it in."""
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
        """Open a connection to an overlay address. Cancellation resets what was opened.

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
        """Reset a dial that nobody waits for, also when it was established in that very moment."""
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
        """The engine was told something: flush it once whatever runs now is done."""
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
        """Have one timer, due no later than the deadline. An early one costs a turn; a moved one a heap operation."""
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
        if factory is None:  # closed between the last handshake packet and now
            self.engine.abort(event.conn)
            self.touch()
            return
        extra = {"peername": event.remote, "sockname": event.local, "tunnel_peer": format_key(event.peer)}
        try:
            self._made(event.conn, factory, extra)
        except Exception as exc:  # a factory that fails costs its own connection
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
        except Exception as exc:  # the dialer's own factory: the dialer hears of it
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
        """Wait for the end. Returns after `close`; raises TunnelBroken if the engine or the socket failed."""
        await self._ended.wait()
        if self._failure is not None:
            raise TunnelBroken(f"the tunnel broke: {self._failure}") from self._failure

    def close(self) -> None:
        """Reset every connection, tell every protocol, release the socket. Idempotent."""
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
