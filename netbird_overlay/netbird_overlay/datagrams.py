"""UDP inside the overlay as `asyncio.DatagramTransport`: listening ports and sockets connected to one remote address.

Datagrams may be lost, also on their way through full queues, and none is fragmented: one that does not fit into the
overlay's MTU is reported to the protocol as `EMSGSIZE`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from netbird_overlay.engine import Engine, EngineError, LimitReached, NoEndpoint, NoRoute, UdpFailed, UdpReceived
from netbird_overlay.errors import AlreadyListening, Failed, Unreachable

FLOW_SECONDS: Final = 120.0
"""Time from a datagram at a listening port in which its flow counts as open: RFC 4787 asks NATs for as much."""
MAX_FLOWS: Final = 4096
"""Maximum number of remote addresses whose flows are noted; beyond it the one that was silent for longest goes."""

DatagramFactory = Callable[[], asyncio.DatagramProtocol]
Admit = Callable[[bytes, str], bool]
"""Decides on a datagram by its peer's key and its remote address."""
DatagramEndpoint = tuple["TunnelDatagrams", asyncio.DatagramProtocol]


class Sender(Protocol):
    """The part of the driver that sockets use."""

    @property
    def engine(self) -> Engine: ...

    def touch(self) -> None:
        """Schedule a flush after a call on the engine."""


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class TunnelDatagrams(asyncio.DatagramTransport):
    """The transport of a listening port or of a connected socket.

    `get_extra_info` knows `sockname` (without an address for a listening port) and, for a connected one, `peername`. It
    calls the protocol's `connection_lost` exactly once, and never from inside a call of the protocol.
    """

    def __init__(
        self,
        owner: Sockets,
        loop: asyncio.AbstractEventLoop,
        socket: int,
        protocol: asyncio.DatagramProtocol,
        extra: dict[str, Any],
        admit: Admit | None,
    ) -> None:
        super().__init__(extra)
        self._owner = owner
        self._loop = loop
        self._socket = socket
        self._protocol = protocol
        self._remote: tuple[str, int] | None = extra.get("peername")
        self._admit = admit
        self._closing = False

    def __repr__(self) -> str:
        return f"<TunnelDatagrams {self.get_extra_info('sockname')} {'closed' if self._closing else 'open'}>"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if not isinstance(protocol, asyncio.DatagramProtocol):
            raise TypeError("a datagram protocol is needed")
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send a datagram, to `addr` from a listening port. It may be lost like any datagram.

        Raises:
            TypeError: `data` is not bytes-like.
            ValueError: a listening port needs `addr`; a connected socket takes its own remote address only.
        """
        if self._closing:
            return
        if self._remote is not None:
            if addr not in (None, self._remote):
                raise ValueError(f"a connected socket sends to {self._remote} only, not to {addr}")
            addr = None
        elif addr is None:
            raise ValueError("a listening port needs the address to send to")
        try:
            self._owner.send(self._socket, data, None if addr is None else (addr[0], addr[1]))
        except OSError as exc:
            self._loop.call_soon(self._failed, exc)

    def on_datagram(self, event: UdpReceived) -> None:
        if not self._closing and (self._admit is None or self._admit(event.peer, event.remote[0])):
            if self._remote is None:
                self._owner.note(event.remote[0])
            self._protocol.datagram_received(event.data, event.remote)

    def on_failed(self, reason: str) -> None:
        if reason == "unreachable":
            self._failed(_failure(errno.ECONNREFUSED))
        else:
            self.on_lost(ConnectionAbortedError(errno.ECONNABORTED, f"the tunnel ended the socket: {reason}"))

    def _failed(self, exc: OSError) -> None:
        if not self._closing:
            self._protocol.error_received(exc)

    def close(self) -> None:
        if not self._closing:
            self._owner.close(self._socket)
            self.on_lost(None)

    def abort(self) -> None:
        self.close()

    def on_lost(self, exc: Exception | None) -> None:
        """End the transport, whose socket the engine no longer has."""
        if not self._closing:
            self._closing = True
            self._owner.forget(self._socket)
            self._loop.call_soon(self._protocol.connection_lost, exc)


class Sockets:
    """The UDP sockets of one driver."""

    def __init__(self, sender: Sender, loop: asyncio.AbstractEventLoop) -> None:
        self._sender = sender
        self._loop = loop
        self._transports: dict[int, TunnelDatagrams] = {}
        self._flows: dict[str, float] = {}  # remote address → time of its last datagram; the oldest first
        self._ended = False

    def listen(self, factory: DatagramFactory, port: int, admit: Admit | None) -> DatagramEndpoint:
        """Receive datagrams to a port. Raises AlreadyListening, Failed."""
        if self._ended:
            raise Failed(f"port {port}: the tunnel is closed")
        if port in self._transports:
            raise AlreadyListening(f"UDP port {port} has a listener already")
        try:
            self._sender.engine.udp_listen(port)
        except (LimitReached, EngineError) as exc:
            raise Failed(f"port {port}: {exc}") from exc
        return self._made(port, factory, {"sockname": ("", port)}, admit)

    def connect(self, factory: DatagramFactory, remote: tuple[str, int]) -> DatagramEndpoint:
        """Exchange datagrams with one remote address. Raises Unreachable, Failed."""
        where = f"datagrams to {remote[0]}:{remote[1]}"
        if self._ended:
            raise Failed(f"{where}: the tunnel is closed")
        try:
            socket, local = self._sender.engine.udp_connect(*remote)
        except (NoRoute, NoEndpoint) as exc:
            raise Unreachable(f"{where}: {exc}") from exc
        except (LimitReached, EngineError) as exc:
            raise Failed(f"{where}: {exc}") from exc
        return self._made(socket, factory, {"sockname": local, "peername": remote}, None)

    def _made(
        self, socket: int, factory: DatagramFactory, extra: dict[str, Any], admit: Admit | None
    ) -> DatagramEndpoint:
        try:
            protocol = factory()
            transport = self._transports[socket] = TunnelDatagrams(self, self._loop, socket, protocol, extra, admit)
            protocol.connection_made(transport)
        except BaseException:
            self._transports.pop(socket, None)
            self.close(socket)
            raise
        return transport, protocol

    def send(self, socket: int, data: bytes | bytearray | memoryview, remote: tuple[str, int] | None) -> None:
        """Queue a datagram. Raises OSError if it can never arrive."""
        try:
            self._sender.engine.udp_send(socket, data, remote)
        except (NoRoute, NoEndpoint) as exc:
            raise _failure(errno.EHOSTUNREACH) from exc
        except ValueError as exc:
            raise _failure(errno.EMSGSIZE if remote is None or len(data) > 0 else errno.EINVAL) from exc
        except EngineError:
            return  # the next turn reports it
        self._sender.touch()

    def close(self, socket: int) -> None:
        if not self._ended:
            self._sender.engine.udp_close(socket)

    def note(self, address: str) -> None:
        """Take note of a datagram at a listening port."""
        self._flows.pop(address, None)
        if len(self._flows) >= MAX_FLOWS:
            del self._flows[next(iter(self._flows))]
        self._flows[address] = self._loop.time()

    def remotes(self) -> Iterator[str]:
        """Yield the remote overlay address of each connected socket, and of each recent flow at a listening port."""
        since = self._loop.time() - FLOW_SECONDS
        yield from [address for address, at in self._flows.items() if at > since]
        for transport in self._transports.values():
            if (peername := transport.get_extra_info("peername")) is not None:
                yield peername[0]

    def forget(self, socket: int) -> None:
        self._transports.pop(socket, None)

    def dispatch(self, event: UdpReceived | UdpFailed) -> None:
        """Deliver an event of the engine."""
        if (transport := self._transports.get(event.socket)) is None:
            return
        if isinstance(event, UdpReceived):
            transport.on_datagram(event)
        else:
            transport.on_failed(event.reason)

    def end(self, exc: Exception) -> None:
        """End every socket, because the engine has ended."""
        self._ended = True
        for transport in list(self._transports.values()):
            transport.on_lost(exc)
