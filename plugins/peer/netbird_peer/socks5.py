"""A SOCKS5 server on the overlay (RFC 1928): without authentication, CONNECT and UDP ASSOCIATE, names by its DNS.

The first half reads and writes the protocol's bytes without a socket; the second half serves it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address
from typing import Final, cast

from netbird_overlay.errors import ConnectError, Refused, TimedOut, Unreachable
from netbird_peer.datagrams import Associations, Client, OpenDatagrams
from netbird_peer.pipe import STREAMS, Dial, Pipe, report

VERSION: Final = 5
NO_AUTHENTICATION: Final = 0
NO_METHOD: Final = b"\x05\xff"
CONNECT: Final = 1
UDP_ASSOCIATE: Final = 3
TARGETS: Final = 64
"""Maximum number of targets of one UDP ASSOCIATE; beyond it the one that was silent for longest ends."""
HANDSHAKE_SECONDS: Final = 10.0
"""Maximum time for a client to send its request; on expiry the connection is closed."""


class Status(IntEnum):
    """The codes of a reply."""

    SUCCEEDED = 0
    FAILED = 1
    UNREACHABLE = 4
    REFUSED = 5
    TIMED_OUT = 6
    COMMAND = 7
    ADDRESS = 8


class BadHandshake(Exception):
    """A client's bytes are no SOCKS5. `reply` is the answer, empty for none; the connection must be closed."""

    def __init__(self, reason: str, reply: bytes = b"") -> None:
        super().__init__(reason)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request for a stream, or for a port for datagrams. `host` is a name or an address literal.

    Attributes:
        port: 1 to 65535; with `datagrams` the client's own port, 0 if it does not know it yet.
    """

    host: str
    port: int
    datagrams: bool = False


class Handshake:
    """The server's side of one connection, until the request is complete. It opens no stream.

    It keeps less than 262 bytes of an incomplete request: lengths in the protocol have one byte.
    """

    def __init__(self) -> None:
        self._received = bytearray()
        self._greeted = False
        self.request: Request | None = None

    @property
    def rest(self) -> bytes:
        """The bytes behind the request, which belong to the stream."""
        return bytes(self._received)

    def feed(self, data: bytes) -> bytes:
        """Take the client's bytes; return those to send to it. Raises BadHandshake."""
        self._received += data
        reply = b""
        if not self._greeted:
            reply = self._greeting()
        if self._greeted and self.request is None:
            self.request = self._request()
        return reply

    def _greeting(self) -> bytes:
        received = self._received
        if received and received[0] != VERSION:
            raise BadHandshake("the client does not speak SOCKS5")
        if len(received) < 2 or len(received) < 2 + received[1]:
            return b""
        methods = received[2 : 2 + received[1]]
        del received[: 2 + received[1]]
        if NO_AUTHENTICATION not in methods:
            raise BadHandshake("the client offers no method without authentication", NO_METHOD)
        self._greeted = True
        return bytes((VERSION, NO_AUTHENTICATION))

    def _request(self) -> Request | None:
        received = self._received
        if received and received[0] != VERSION:
            raise BadHandshake("the request is no SOCKS5")
        if len(received) < 5:
            return None
        target = read_target(received)
        if target is None:
            return None
        host, port, end = target
        command = received[1]
        del received[:end]
        if command not in (CONNECT, UDP_ASSOCIATE):
            raise BadHandshake("only CONNECT and UDP ASSOCIATE are supported", reply(Status.COMMAND))
        if not port and command == CONNECT:
            raise BadHandshake("the request has no port", reply(Status.ADDRESS))
        return Request(host, port, command == UDP_ASSOCIATE)


def read_target(data: bytes | bytearray) -> tuple[str, int, int] | None:
    """Return host, port and end of an address whose type is the fourth of at least five bytes; None if it is longer.

    Raises:
        BadHandshake: unknown type, or no host name.
    """
    kind = data[3]
    start, size = {1: (4, 4), 3: (5, data[4]), 4: (4, 16)}.get(kind, (0, 0))
    if not start:
        raise BadHandshake("the request's address has an unknown type", reply(Status.ADDRESS))
    end = start + size
    if len(data) < end + 2:
        return None
    address, port = bytes(data[start:end]), int.from_bytes(data[end : end + 2], "big")
    return _name(address) if kind == 3 else str(ip_address(address)), port, end + 2


def _name(raw: bytes) -> str:
    name = raw.decode("ascii", "replace")
    if not name or not name.isascii() or not name.isprintable() or " " in name:
        raise BadHandshake("the request's name is no host name", reply(Status.ADDRESS))
    return name


def reply(status: Status, bound: tuple[str, int] = ("0.0.0.0", 0)) -> bytes:  # noqa: S104 - nothing listens there
    """Return a reply. The bound address means something to the client only if it asked for a port for datagrams."""
    return bytes((VERSION, status, 0)) + target(*bound)


def target(host: str, port: int) -> bytes:
    """Return an address with its type. `host` is an address literal or a name of at most 255 ASCII characters."""
    try:
        address = ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes((3, len(name))) + name + port.to_bytes(2)
    return bytes((1 if address.version == 4 else 4,)) + address.packed + port.to_bytes(2)


def status_of(error: OSError | ConnectError) -> Status:
    match error:
        case Refused():
            return Status.REFUSED
        case Unreachable():
            return Status.UNREACHABLE
        case TimedOut() | TimeoutError():
            return Status.TIMED_OUT
        case _:
            return Status.FAILED


class SocksServer:
    """A protocol factory for a listener.

    Args:
        dial: opens the streams.
        datagrams: opens sockets for UDP ASSOCIATE; None refuses it.
        timeout: maximum time to open one, in seconds.
        streams: maximum number of connections at once; further ones are reset.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        dial: Dial,
        *,
        timeout: float,
        streams: int = STREAMS,
        datagrams: OpenDatagrams | None = None,
    ) -> None:
        self.tasks = tasks
        self.dial = dial
        self.datagrams = datagrams
        self.timeout = timeout
        self.free = streams

    def __call__(self) -> SocksConnection:
        return SocksConnection(self)


class SocksConnection(asyncio.Protocol):
    """One client's connection: the handshake, and then a pipe to the overlay."""

    def __init__(self, server: SocksServer) -> None:
        self._server = server
        self._handshake = Handshake()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast(asyncio.Transport, transport)
        if not self._server.free:
            opened.abort()
            return
        self._server.free -= 1
        self._transport = opened
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, opened.abort)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._task is not None or transport.is_closing():
            return
        try:
            transport.write(self._handshake.feed(data))
        except BadHandshake as error:
            transport.write(error.reply)
            transport.close()
            return
        request = self._handshake.request
        if request is not None:
            self._stop_timer()
            serve = self._relay if request.datagrams else self._connect
            if not request.datagrams:
                transport.pause_reading()
            self._task = self._server.tasks.create_task(serve(transport, request))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._lost.set()
        if self._transport is not None and self._task is None:
            self._server.free += 1

    async def _connect(self, transport: asyncio.Transport, request: Request) -> None:
        try:
            _, remote = await self._server.dial(Pipe, request.host, request.port, timeout=self._server.timeout)
            transport.write(reply(Status.SUCCEEDED))
            local = Pipe()
            transport.set_protocol(local)
            local.connection_made(transport)
            local.join(cast(Pipe, remote))
            if rest := self._handshake.rest:
                local.data_received(rest)
            await local.ended.wait()
        except (OSError, ConnectError) as error:
            transport.write(reply(status_of(error)))
            transport.close()
        except Exception as error:
            report(error, "a SOCKS request failed")
            transport.write(reply(Status.FAILED))
            transport.close()
        finally:
            self._server.free += 1

    async def _relay(self, transport: asyncio.Transport, request: Request) -> None:
        """Relay datagrams until the client closes this connection. What it sends here meanwhile is ignored."""
        server = self._server
        try:
            if server.datagrams is None:
                raise BadHandshake("UDP ASSOCIATE is not supported", reply(Status.COMMAND))
            client, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
            relay = SocksDatagrams(server.tasks, server.datagrams, client[0], request.port, timeout=server.timeout)
            loop = asyncio.get_running_loop()
            socket, _ = await loop.create_datagram_endpoint(lambda: relay, (own[0], 0))
            try:
                transport.write(reply(Status.SUCCEEDED, socket.get_extra_info("sockname")[:2]))
                await self._lost.wait()
            finally:
                socket.close()
        except BadHandshake as error:
            transport.write(error.reply)
        except OSError as error:
            transport.write(reply(status_of(error)))
        except Exception as error:
            report(error, "a SOCKS request failed")
            transport.write(reply(Status.FAILED))
        finally:
            transport.close()
            server.free += 1

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class SocksDatagrams(asyncio.DatagramProtocol):
    """The port of a UDP ASSOCIATE (RFC 1928 §7): each datagram of the client names its target, each answer its source.

    Only the client's datagrams count: those from the address of its connection and the port that it named; without one,
    the port of the first datagram. Fragments are dropped, as the standard allows. Each target has a socket of its own.

    Args:
        host, port: the client's address.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, open_socket: OpenDatagrams, host: str, port: int, *, timeout: float
    ) -> None:
        self._client = (host, port)
        self._associations = Associations(tasks, open_socket, self._deliver, timeout=timeout, most=TARGETS)
        self._transport: asyncio.DatagramTransport | None = None

    def __len__(self) -> int:
        return len(self._associations)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Client) -> None:
        host, port = self._client
        if addr[0] != host or port not in (0, addr[1]) or len(data) < 5 or data[:3] != bytes(3):
            return
        try:
            address = read_target(data)
        except BadHandshake:
            return
        if address is None or not address[1]:
            return
        self._client = (host, addr[1])
        self._associations.send(address[:2], data[address[2] :], *address[:2])

    def error_received(self, exc: Exception) -> None:
        """The client has closed its port; its connection ends the association."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._associations.close()

    def _deliver(self, source: Client, data: bytes) -> None:
        if self._transport is not None:
            self._transport.sendto(bytes(3) + target(*source) + data, self._client)
