"""Datagrams between this machine and the overlay, for `udp/PORT=HOST:PORT` of `forward` and `serve`, and for `socks`.

Each client of a port gets an association: a socket of its own on the other side, until it has been idle for a while.
Datagrams may be lost, as everywhere: those that wait for an association, or for a full socket, are few.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.errors import ConnectError
from netbird_peer.pipe import report

ASSOCIATIONS: Final = 256
"""Maximum number of clients of a port; beyond it the one that was silent for longest is forgotten."""
PEER_ASSOCIATIONS: Final = 64
"""Maximum number of clients of a served port at one overlay address."""
IDLE_SECONDS: Final = 120.0
"""Time without a datagram after which an association ends: RFC 4787 asks for at least two minutes."""
WAITING: Final = 16
"""Maximum number of datagrams of a client that wait while its association opens; beyond it the oldest is dropped."""
LOCAL_SECONDS: Final = 10.0
"""Maximum time to open a local socket, for a target that is a name."""
LONGEST: Final = 65535
BUFFERED_BYTES: Final = 256 << 10
"""Bytes that may wait in a stream that carries datagrams; beyond it further ones are dropped."""

DatagramSocket = tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]
Client = tuple[Any, ...]


class OpenDatagrams(Protocol):
    """Opens a socket on the overlay, connected to a port of an address or a name."""

    async def __call__(
        self, protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float
    ) -> DatagramSocket:
        """Raises ConnectError, and OSError where another process opens it for us."""


class Associations:
    """Sockets of a port's clients, each connected to the client's target.

    Args:
        open_socket: opens the socket of a new association.
        deliver: called with a client and each datagram that its socket receives.
        most: maximum number of associations; beyond it the one that was silent for longest ends.
        group: returns the holder of a client's places, of which each may have `most_each`: beyond them its own oldest
            ends, so that no holder takes the places of others.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        open_socket: OpenDatagrams,
        deliver: Callable[[Client, bytes], None],
        *,
        timeout: float,
        most: int = ASSOCIATIONS,
        most_each: int = ASSOCIATIONS,
        group: Callable[[Client], object] = lambda client: None,
    ) -> None:
        self._tasks, self._open, self.deliver = tasks, open_socket, deliver
        self._timeout = timeout
        self._most, self._most_each, self._group = most, most_each, group
        self._clients: OrderedDict[Client, _Association] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def send(self, client: Client, data: bytes, host: str, port: int) -> None:
        """Send a client's datagram. The first one opens the client's socket to this target."""
        association = self._clients.get(client)
        if association is None:
            self._make_room(client)
            association = self._clients[client] = _Association(self, client)
            self._tasks.create_task(self._connect(association, host, port))
        association.send(data)

    def _make_room(self, client: Client) -> None:
        if len(self._clients) >= self._most_each:
            holder = self._group(client)
            held = [each for each in self._clients if self._group(each) == holder]
            if len(held) >= self._most_each:
                self._clients[held[0]].close()
        if len(self._clients) >= self._most:
            next(iter(self._clients.values())).close()

    def used(self, client: Client) -> None:
        if client in self._clients:
            self._clients.move_to_end(client)

    def forget(self, client: Client) -> None:
        self._clients.pop(client, None)

    def close(self) -> None:
        """End all associations."""
        for association in list(self._clients.values()):
            association.close()

    async def _connect(self, association: _Association, host: str, port: int) -> None:
        try:
            transport, _ = await self._open(lambda: association, host, port, timeout=self._timeout)
            if association.closed:
                transport.close()
        except (OSError, ConnectError):
            association.close()
        except Exception as error:
            report(error, "an association could not be opened")
            association.close()


class UdpForward(asyncio.DatagramProtocol):
    """The protocol of a port, local or on the overlay, whose datagrams go to one target on the other side.

    Args:
        most_each: maximum number of associations of one address. All local clients have the same one.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        open_socket: OpenDatagrams,
        host: str,
        port: int,
        *,
        timeout: float,
        most_each: int = ASSOCIATIONS,
    ) -> None:
        self._target = (host, port)
        self._associations = Associations(
            tasks, open_socket, self._deliver, timeout=timeout, most_each=most_each, group=lambda client: client[0]
        )
        self.transport: asyncio.DatagramTransport | None = None

    def __len__(self) -> int:
        return len(self._associations)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Client) -> None:
        self._associations.send(addr, data, *self._target)

    def error_received(self, exc: Exception) -> None:
        """A client has gone; its association ends by its silence."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._associations.close()

    def _deliver(self, client: Client, data: bytes) -> None:
        if self.transport is not None:
            self.transport.sendto(data, client)


def served_datagrams(tasks: asyncio.TaskGroup, host: str, port: int) -> UdpForward:
    """Return the protocol of an overlay port whose datagrams go to a local server."""
    return UdpForward(tasks, open_local, host, port, timeout=LOCAL_SECONDS, most_each=PEER_ASSOCIATIONS)


async def open_local(protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float) -> DatagramSocket:
    """Open a socket of this machine, connected to a local server. Raises OSError."""
    async with asyncio.timeout(timeout):
        return await asyncio.get_running_loop().create_datagram_endpoint(protocol_factory, remote_addr=(host, port))


class _Association(asyncio.DatagramProtocol):
    """A client, and its socket on the other side."""

    def __init__(self, owner: Associations, client: Client) -> None:
        self._owner = owner
        self._client = client
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._remote: asyncio.DatagramTransport | None = None
        self._used = asyncio.get_running_loop().time()
        self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._check)
        self.closed = False

    def send(self, data: bytes) -> None:
        self._touch()
        if self._remote is None:
            self._waiting.append(data)
        else:
            self._remote.sendto(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._remote = cast(asyncio.DatagramTransport, transport)
        for data in self._waiting:
            self._remote.sendto(data)
        self._waiting.clear()

    def datagram_received(self, data: bytes, addr: Client) -> None:
        if not self.closed:
            self._touch()
            self._owner.deliver(self._client, data)

    def error_received(self, exc: Exception) -> None:
        """No server listens, or a datagram was too large: like a lost one, for a client that is no socket of ours."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._timer.cancel()
            self._owner.forget(self._client)
            if self._remote is not None:
                self._remote.close()

    def _touch(self) -> None:
        self._used = asyncio.get_running_loop().time()
        self._owner.used(self._client)

    def _check(self) -> None:
        left = self._used + IDLE_SECONDS - asyncio.get_running_loop().time()
        if left <= 0:
            self.close()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._check)


# Datagrams on a stream, for the control socket ------------------------------------------------------------------------


def frame(datagram: bytes) -> bytes:
    """Return a datagram with its length before it, in two bytes. It has at most `LONGEST` bytes."""
    return len(datagram).to_bytes(2, "big") + datagram


class Frames:
    """Takes the bytes of a stream and returns the datagrams in them."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._received += data
        datagrams = []
        start = 0
        while len(self._received) >= start + 2:
            end = start + 2 + int.from_bytes(self._received[start : start + 2], "big")
            if len(self._received) < end:
                break
            datagrams.append(bytes(self._received[start + 2 : end]))
            start = end
        del self._received[:start]
        return datagrams


class StreamDatagrams(asyncio.DatagramTransport):
    """A datagram transport over a stream."""

    def __init__(self, stream: asyncio.Transport) -> None:
        super().__init__()
        self._stream = stream

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        if len(data) <= LONGEST and self._stream.get_write_buffer_size() <= BUFFERED_BYTES:
            self._stream.write(frame(bytes(data)))

    def is_closing(self) -> bool:
        return self._stream.is_closing()

    def close(self) -> None:
        self._stream.close()

    def abort(self) -> None:
        self._stream.abort()


class StreamProtocol(asyncio.Protocol):
    """Reads datagrams from a stream and passes them to a datagram protocol, which it tells of the stream's end too."""

    def __init__(self, datagrams: asyncio.DatagramProtocol) -> None:
        self._datagrams = datagrams
        self._frames = Frames()
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        for datagram in self._frames.feed(data):
            self._datagrams.datagram_received(datagram, ())

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._datagrams.connection_lost(exc)


class Exit(asyncio.DatagramProtocol):
    """The other end of a stream with datagrams, in `up`: what arrives on the overlay goes into the stream."""

    def __init__(self) -> None:
        self._stream: StreamDatagrams | None = None

    def join(self, stream: StreamDatagrams) -> None:
        self._stream = stream

    def datagram_received(self, data: bytes, addr: Client) -> None:
        if self._stream is not None:
            self._stream.sendto(data)

    def error_received(self, exc: Exception) -> None:
        """Nothing listens there, or a datagram was too large; the client notices that no answer comes."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.abort()


class Entrance(asyncio.DatagramProtocol):
    """Passes what arrives on a stream to a socket on the overlay."""

    def __init__(self, remote: asyncio.DatagramTransport) -> None:
        self._remote = remote

    def datagram_received(self, data: bytes, addr: Client) -> None:
        self._remote.sendto(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._remote.close()
