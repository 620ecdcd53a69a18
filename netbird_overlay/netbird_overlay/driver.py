"""Runs an engine on the event loop: gives it a socket and the time, and dispatches its events.

In each turn the driver calls the engine once, which pumps the socket and returns the events, and passes each event to
its transport. Data that protocols write during the turn is flushed at its end, and data that they write later by one
`call_soon`, so that the answers to many requests share datagrams and system calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from netbird_overlay.alarm import Alarm
from netbird_overlay.datagrams import Admit, DatagramEndpoint, DatagramFactory, Sockets
from netbird_overlay.engine import (
    Accepted,
    Closed,
    Connected,
    ConnectFailed,
    Data,
    Endpoint,
    EndpointChanged,
    Engine,
    EngineError,
    Eof,
    Event,
    Handshake,
    LimitReached,
    NoEndpoint,
    NoRoute,
    Turn,
    UdpFailed,
    UdpReceived,
    Writable,
)
from netbird_overlay.errors import AlreadyListening as AlreadyListening
from netbird_overlay.errors import ConnectError, Failed, OverlayError, Refused, TimedOut, Unreachable
from netbird_overlay.members import plain_address
from netbird_overlay.transport import LINGER, TunnelTransport
from netbird_overlay.udp_socket import open_socket as open_socket
from netbird_wire.envelope import format_key

BUDGET = 128
"""Maximum number of datagrams a turn: about a millisecond of decryption, then other callbacks of the loop run."""
REST = 0.001
"""Time in seconds in which datagrams of a bulk transfer collect, when the engine reports that they may."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Connection = tuple[asyncio.Transport, asyncio.BaseProtocol]
ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class TunnelBroken(OverlayError):
    """The engine or its socket failed. All its connections have ended."""


def boot_time() -> float:
    """Return seconds on a clock that also advances while the machine sleeps, where the system has one.

    The loop's clock stands still during a suspend, and a session whose age it measured would be used after the other
    end has dropped it.
    """
    return time.clock_gettime(_CLOCK)


class Driver:
    """Runs one engine on the running loop, from construction to `close`. Owns the socket.

    Args:
        on_handshake: called with a peer's public key after each handshake with it.
        on_endpoint: called with a peer's public key and new endpoint when the endpoint changes.
        clock: the engine's time in seconds; must not go backwards.
        linger: maximum time in seconds without progress in which a closed connection still delivers its data.

    Attributes:
        on_stray: called with each datagram of the socket that is STUN's, and its source.
        on_carried: called with a carrier's number and a turn's datagrams for it. Without it they are lost.
        family: `socket.AF_INET`, or `socket.AF_INET6`, where IPv4 endpoints may be reachable too.

    A callback or a protocol that raises is reported to the loop's exception handler. Every other event of the turn is
    delivered all the same; a connection whose event cannot be delivered is reset, because its stream would continue
    with bytes missing.
    """

    def __init__(
        self,
        engine: Engine,
        sock: socket.socket,
        *,
        on_handshake: Callable[[bytes], None] | None = None,
        on_endpoint: Callable[[bytes, Endpoint], None] | None = None,
        clock: Callable[[], float] = boot_time,
        linger: float = LINGER,
    ) -> None:
        self.engine = engine
        self.linger = linger
        self.on_stray: Callable[[bytes, Endpoint], None] | None = None
        self.on_carried: Callable[[int, list[bytes]], None] | None = None
        self.family = sock.family
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._fd = sock.fileno()
        self._on_handshake = on_handshake
        self._on_endpoint = on_endpoint
        self._transports: dict[int, TunnelTransport] = {}
        self._listeners: dict[int, tuple[ProtocolFactory, Callable[[bytes, str], bool] | None]] = {}
        self._dials: dict[int, tuple[asyncio.Future[Connection], ProtocolFactory, tuple[str, int]]] = {}
        self._datagrams = Sockets(self, self._loop)
        self._alarm = Alarm(self._loop, functools.partial(self._turn, 0))
        self._flush_soon: asyncio.Handle | None = None
        self._more = False  # the engine keeps received datagrams for the next turn
        self._in_turn = False
        self._dirty = False
        self._blocked = False
        self._rest: asyncio.Handle | None = None  # while datagrams collect, the loop does not watch the socket
        self._ended = asyncio.Event()
        self._failure: Exception | None = None
        self.engine.aggregate(self._fd)
        self.engine.advance(self._clock())
        self._loop.add_reader(self._fd, self._turn, BUDGET)
        self.touch()

    @property
    def local_port(self) -> int:
        """The local UDP port."""
        return int(self._socket.getsockname()[1])

    @property
    def local_host(self) -> str:
        """The address that the socket is bound to; "" for all of this host's addresses."""
        host = str(self._socket.getsockname()[0])
        return "" if host in ("0.0.0.0", "::") else plain_address(host.partition("%")[0]) or ""  # noqa: S104

    # Paths ---------------------------------------------------------------------------------------------------------

    def deliver(self, carrier: int, datagrams: Sequence[bytes]) -> None:
        """Pass datagrams that came by a carrier to the engine."""
        if self._ended.is_set():
            return
        now = self._clock()
        try:
            self.engine.receive_all(datagrams, carrier, now)
        except EngineError as exc:
            self._fail(exc)
            return
        self.touch()

    def send_stray(self, datagram: bytes, endpoint: Endpoint) -> None:
        """Send a datagram that is not WireGuard's from the engine's socket. It is lost if the socket cannot take it."""
        if self._ended.is_set():
            return
        host = endpoint.host
        address: tuple[str, int] | tuple[str, int, int, int] = (host, endpoint.port)
        if self.family == socket.AF_INET6:
            address = (host if ":" in host else f"::ffff:{host}", endpoint.port, 0, endpoint.scope)
        elif ":" in host:
            return
        with contextlib.suppress(OSError):
            self._socket.sendto(datagram, address)

    # Connections ---------------------------------------------------------------------------------------------------

    def listen(
        self, port: int, protocol_factory: ProtocolFactory, *, admit: Callable[[bytes, str], bool] | None = None
    ) -> None:
        """Accept connections to a port, as far as the engine's inbound rules allow them.

        `admit` gets the peer's key and the remote address; a connection for which it returns False is reset.
        """
        if port in self._listeners:
            raise AlreadyListening(f"port {port} has a listener already")
        self.engine.listen(port)
        self._listeners[port] = (protocol_factory, admit)
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
            conn = self.engine.connect(host, port, self._clock())
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

    def datagram_endpoint(
        self,
        protocol_factory: DatagramFactory,
        *,
        port: int = 0,
        remote: tuple[str, int] | None = None,
        admit: Admit | None = None,
    ) -> DatagramEndpoint:
        """Receive datagrams to a port, as far as the inbound rules and `admit` allow them, or connect to `remote`.

        Raises:
            AlreadyListening, Unreachable, Failed.
        """
        if remote is None:
            return self._datagrams.listen(protocol_factory, port, admit)
        return self._datagrams.connect(protocol_factory, remote)

    def remotes(self) -> Iterator[str]:
        """Yield the remote overlay address of each open connection, connected socket and recent flow of datagrams."""
        yield from self._datagrams.remotes()
        for transport in self._transports.values():
            yield transport.get_extra_info("peername")[0]

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
        self._turn(BUDGET if self._more else 0)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._blocked = False
        self._turn(0)

    def _on_rested(self) -> None:
        self._rest = None
        try:
            self._turn(BUDGET)
        finally:
            if self._rest is None and not self._ended.is_set():
                self._loop.add_reader(self._fd, self._turn, BUDGET)

    def _turn(self, budget: int) -> None:
        # The second run sends what was written in the first; anything further waits for the loop.
        if self._run(budget) and self._run(0):
            self.touch()

    def _run(self, budget: int) -> bool:
        """Run one turn. True if callbacks made calls on the engine whose effects can be sent."""
        if self._ended.is_set():
            return False
        now = self._clock()
        try:
            turn = self.engine.turn(self._fd, now, budget)
        except (EngineError, OSError) as exc:
            self._fail(exc)
            return False
        self._more = turn.more or (self._more and not budget)
        self._dirty = False
        if turn.events:
            self._dispatch_all(turn.events)
        if (turn.carried or turn.strays) and not self._ended.is_set():
            self._hand_over(turn)
        if self._ended.is_set():
            return False
        if turn.more or (turn.pending and not turn.blocked):
            self.touch()
        if turn.blocked and not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._fd, self._on_writable)
        if turn.may_collect and self._rest is None:
            self._loop.remove_reader(self._fd)
            self._rest = self._loop.call_later(REST, self._on_rested)
        if not self._blocked and turn.deadline != math.inf:
            self._alarm.set(turn.deadline - now)
        return self._dirty and not turn.blocked

    def _dispatch_all(self, events: list[Event]) -> None:
        """Deliver each event, whatever the delivery of the others raises."""
        interrupt: BaseException | None = None
        self._in_turn = True
        try:
            for event in events:
                try:
                    self._dispatch(event)
                except (SystemExit, KeyboardInterrupt) as exc:  # ends the loop, after the rest of the turn
                    interrupt = interrupt or exc
                except BaseException as exc:
                    self._undelivered(event, exc)
        finally:
            self._in_turn = False
        if interrupt is not None:
            if self._dirty:
                self.touch()
            raise interrupt

    def _hand_over(self, turn: Turn) -> None:
        """Pass on the turn's datagrams that do not belong to the engine's socket."""
        for carrier, datagrams in turn.carried:
            self._call(self.on_carried, carrier, datagrams)
        for datagram, source in turn.strays:
            self._call(self.on_stray, datagram, source)

    def _undelivered(self, event: Event, exc: BaseException) -> None:
        """Report an event that was not delivered, and reset its connection."""
        if isinstance(exc, EngineError):
            self._fail(exc)
            return
        self._report(exc, f"an event was not delivered: {type(event).__name__}")
        conn = getattr(event, "conn", None)
        if conn is None:
            return
        failure = exc if isinstance(exc, Exception) else ConnectionAbortedError(f"an event was not delivered: {exc!r}")
        if (transport := self._transports.get(conn)) is not None:
            transport.on_broken(failure)
        if (dial := self._dials.pop(conn, None)) is not None and not dial[0].done():
            dial[0].set_exception(Failed(f"dial {dial[2][0]}:{dial[2][1]}: {failure}"))
        with contextlib.suppress(EngineError):  # the next turn reports it
            self.engine.abort(conn)
        self._dirty = True

    def _call(self, callback: Callable[..., object] | None, *arguments: object) -> None:
        """Call back a user of the driver. Its exceptions are reported, and concern none of the other events."""
        if callback is None:
            return
        try:
            callback(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, f"the callback {getattr(callback, '__qualname__', repr(callback))} failed")

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler({"message": f"tunnel: {message}", "exception": exc})

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
            case UdpReceived() | UdpFailed():
                self._datagrams.dispatch(event)
            case Handshake(peer):
                self._call(self._on_handshake, peer)
            case EndpointChanged(peer, endpoint):
                self._call(self._on_endpoint, peer, endpoint)

    def _accepted(self, event: Accepted) -> None:
        factory, admit = self._listeners.get(event.port, (None, None))
        # The listener may have been closed after the last packet of the TCP handshake.
        if factory is None or (admit is not None and not admit(event.peer, event.remote[0])):
            self.engine.abort(event.conn)
            self.touch()
            return
        extra = {"peername": event.remote, "sockname": event.local, "tunnel_peer": format_key(event.peer)}
        try:
            self._made(event.conn, factory, extra)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # a failing factory ends its own connection only
            self._report(exc, "accepting a connection failed")

    def _connected(self, conn: int, local: tuple[str, int]) -> None:
        dial = self._dials.pop(conn, None)
        if dial is None or dial[0].done():
            self.engine.abort(conn)
            self.touch()
            return
        waiter, factory, remote = dial
        try:
            waiter.set_result(self._made(conn, factory, {"peername": remote, "sockname": local}))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # the factory is the dialer's own, so the dialer gets its exception
            if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
                waiter.set_exception(exc)
            else:  # a future cannot carry these
                failure = Failed(f"dial {remote[0]}:{remote[1]}: the protocol factory raised {exc!r}")
                failure.__cause__ = exc
                waiter.set_exception(failure)

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
        with contextlib.suppress(EngineError):  # a broken engine sends no resets
            for transport in list(self._transports.values()):
                transport.abort()
            self._turn(0)  # sends resets, a bounded number each time; its events end the transports
            while not self._ended.is_set() and not self._blocked and self.engine.pending:
                self._turn(0)
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
        for handle in (self._alarm, self._flush_soon, self._rest):
            if handle is not None:
                handle.cancel()
        for waiter, _, (host, port) in self._dials.values():
            if not waiter.done():
                waiter.set_exception(Failed(f"dial {host}:{port}: {exc}"))
        self._dials.clear()
        self._listeners.clear()
        self._datagrams.end(exc)
        for transport in list(self._transports.values()):
            transport.on_broken(exc)


def _dial_failure(reason: str, remote: tuple[str, int]) -> ConnectError:
    kind: type[ConnectError] = {"refused": Refused, "timeout": TimedOut, "local": Failed}.get(reason, Unreachable)
    return kind(f"dial {remote[0]}:{remote[1]} through the tunnel: {reason.replace('_', ' ')}")
