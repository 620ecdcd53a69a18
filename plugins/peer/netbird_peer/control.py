"""The control socket of a running `netbird-peer up`: other commands ask for its status, and open streams through it.

A client sends one request, a JSON object on a line, and gets one reply, a JSON object on a line:

    {"do": "status"}                                        the status, see `status`
    {"do": "dial", "host": H, "port": P, "timeout": T}      {"ok": true}; then the connection is the stream
    {"do": "datagrams", "host": H, "port": P, "timeout": T} {"ok": true}; then datagrams, see `datagrams.Frames`
    {"do": "serve", "forwards": [[PORT, HOST, PORT], …]}    {"ok": true, "addresses": […]}; until the client closes;
                                                            a fourth member "udp" of a forward: for datagrams
    {"do": "down"}                                          {"ok": true}; then `up` ends

A failure is `{"error": KIND, "message": TEXT}`. The socket lies in the state directory, which only its user can enter.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, cast

from netbird_overlay.datagrams import DatagramFactory
from netbird_overlay.driver import AlreadyListening, Connection, ProtocolFactory
from netbird_overlay.errors import ConnectError, Failed, OverlayError, Refused, TimedOut, Unreachable
from netbird_peer.datagrams import (
    DatagramSocket,
    Entrance,
    Exit,
    OpenDatagrams,
    StreamDatagrams,
    StreamProtocol,
    served_datagrams,
)
from netbird_peer.pipe import STREAMS, Dial, Forwarder, Pipe, report, to_local

SOCKET: Final = "control.sock"
REQUEST_BYTES: Final = 64 << 10
REQUEST_SECONDS: Final = 10.0
"""Maximum time for a client to send its request; on expiry the connection is closed."""
FORWARDS: Final = 256
"""Maximum number of ports in one request."""
KINDS: Final[dict[str, type[ConnectError]]] = {
    "refused": Refused,
    "unreachable": Unreachable,
    "timed_out": TimedOut,
    "failed": Failed,
}

Opened = TypeVar("Opened")
Forward = tuple[int, str, int] | tuple[int, str, int, Literal["udp"]]
"""An overlay port, and the host and port to which its streams or datagrams go."""


class ControlError(OverlayError):
    """The running `up` cannot be reached, or refuses the request."""


class Member(Protocol):
    """The parts of a joined node that the control socket uses."""

    @property
    def dial(self) -> Dial: ...

    @property
    def datagrams(self) -> OpenDatagrams: ...

    @property
    def addresses(self) -> Sequence[str]: ...

    def status(self) -> dict[str, Any]: ...

    def listen(self, port: int, protocol_factory: ProtocolFactory) -> None:
        """Raises AlreadyListening."""

    def listen_datagrams(self, port: int, protocol_factory: DatagramFactory) -> asyncio.DatagramTransport:
        """Raises AlreadyListening, and ConnectError if too many sockets are open."""

    def unlisten(self, port: int) -> None: ...


class ControlServer:
    """Answers requests while `up` runs.

    Attributes:
        down: called by the request `down`.
        patience: see `REQUEST_SECONDS`.
        serving: the connections whose ports the present node serves.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, down: Callable[[], None], *, patience: float = REQUEST_SECONDS
    ) -> None:
        self.patience = patience
        self._member: Member | None = None
        self.serving: set[asyncio.Transport] = set()
        self.down = down
        self.tasks = tasks
        self.free = STREAMS

    def __call__(self) -> _Client:
        return _Client(self)

    def attach(self, member: Member | None) -> None:
        """Use this node from now on; None before the next login. Clients that serve ports must come again."""
        self._member = member
        for transport in self.serving:
            transport.abort()

    def present(self) -> Member:
        """Raises ControlError."""
        if self._member is None:
            raise ControlError("this peer is not connected to its network yet")
        return self._member


@asynccontextmanager
async def control_socket(directory: Path, server: ControlServer) -> AsyncIterator[None]:
    """Listen until the context is left. The caller holds the directory's lock, so that an older socket is dead.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        (directory / SOCKET).unlink()
    with _short(directory) as path:
        listener = await asyncio.get_running_loop().create_unix_server(server, path)
    async with listener:
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                (directory / SOCKET).unlink()


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Yield a path of the socket that is short enough for the system, however long the directory's is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


class _Client(asyncio.Protocol):
    """One connection: its request, and the stream that may follow."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._dialing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast(asyncio.Transport, transport)
        if not self._server.free:
            opened.abort()
            return
        self._server.free -= 1
        self._transport = opened
        self._timer = asyncio.get_running_loop().call_later(self._server.patience, opened.abort)

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._task is not None:
            return  # nothing may follow a request before its reply
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if newline:
            self._stop_timer()
            self._task = self._server.tasks.create_task(self._answer(self._transport, bytes(line)))
        elif len(self._received) > REQUEST_BYTES:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._lost.set()
        if self._task is None:
            self._server.free += self._transport is not None
        elif self._dialing:
            self._task.cancel()

    async def _answer(self, transport: asyncio.Transport, line: bytes) -> None:
        try:
            await self._perform(transport, _parse(line))
        except ConnectError as error:
            kind = next((name for name, leaf in KINDS.items() if isinstance(error, leaf)), "failed")
            self._reply(transport, {"error": kind, "message": str(error)})
        except (ControlError, AlreadyListening) as error:
            self._reply(transport, {"error": "refused_request", "message": str(error)})
        except Exception as error:
            report(error, "a request on the control socket failed")
            self._reply(transport, {"error": "failed", "message": "the request failed; see the log of `up`"})
        finally:
            transport.close()
            self._server.free += 1

    async def _perform(self, transport: asyncio.Transport, request: dict[str, Any]) -> None:
        match request:
            case {"do": "status"}:
                self._reply(transport, self._server.present().status())
            case {"do": "down"}:
                self._reply(transport, {"ok": True})
                self._server.down()
            case {"do": "dial", "host": str(host), "port": int(port), "timeout": int() | float() as timeout}:
                await self._dial(transport, host, port, timeout)
            case {"do": "datagrams", "host": str(host), "port": int(port), "timeout": int() | float() as timeout}:
                await self._datagrams(transport, host, port, timeout)
            case {"do": "serve", "forwards": list(forwards)}:
                await self._serve(transport, [_forward(each) for each in forwards[:FORWARDS]])
            case _:
                raise ControlError("the request is not known: command and `up` must be of the same version")

    async def _dial(self, transport: asyncio.Transport, host: str, port: int, timeout: float) -> None:
        stream, remote = await self._opened(
            self._server.present().dial(Pipe, host, port, timeout=timeout), port, timeout
        )
        if self._lost.is_set():
            stream.abort()
            return
        self._reply(transport, {"ok": True})
        local = Pipe()
        transport.set_protocol(local)
        local.connection_made(transport)
        local.join(cast(Pipe, remote))
        await local.ended.wait()

    async def _datagrams(self, transport: asyncio.Transport, host: str, port: int, timeout: float) -> None:
        opening = self._server.present().datagrams(Exit, host, port, timeout=timeout)
        socket, protocol = await self._opened(opening, port, timeout)
        if self._lost.is_set():
            socket.close()
            return
        self._reply(transport, {"ok": True})
        stream = StreamProtocol(Entrance(socket))
        cast(Exit, protocol).join(StreamDatagrams(transport))
        transport.set_protocol(stream)
        await stream.ended.wait()

    async def _opened(self, opening: Coroutine[Any, Any, Opened], port: int, timeout: float) -> Opened:
        """Wait until a stream or socket on the overlay is open; a client that leaves meanwhile cancels it."""
        if not 0 < port < 65536 or not 0 < timeout <= 3600:
            opening.close()
            raise ControlError("the port or the timeout is out of range")
        self._dialing = True
        try:
            return await opening
        finally:
            self._dialing = False

    async def _serve(self, transport: asyncio.Transport, forwards: Sequence[Forward]) -> None:
        """Carry streams and datagrams to local servers until the client closes its connection, or the node ends."""
        member = self._server.present()
        listening: list[int] = []
        sockets: list[asyncio.DatagramTransport] = []
        try:
            for port, host, target, *udp in forwards:
                if udp:
                    protocol = served_datagrams(self._server.tasks, host, target)
                    sockets.append(member.listen_datagrams(port, lambda protocol=protocol: protocol))  # type: ignore[misc]
                else:
                    member.listen(port, Forwarder(self._server.tasks, to_local(host, target)))
                    listening.append(port)
            self._server.serving.add(transport)
            self._reply(transport, {"ok": True, "addresses": list(member.addresses)})
            await self._lost.wait()
        finally:
            self._server.serving.discard(transport)
            for socket in sockets:
                socket.close()
            for port in listening:
                member.unlisten(port)

    def _reply(self, transport: asyncio.Transport, reply: dict[str, Any]) -> None:
        transport.write(json.dumps(reply).encode() + b"\n")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except ValueError:
        raise ControlError("the request is no JSON") from None
    return request if isinstance(request, dict) else {}


def _forward(value: object) -> Forward:
    match value:
        case [int(port), str(host), int(target)] if 0 < port < 65536 and 0 < target < 65536:
            return port, host, target
        case [int(port), str(host), int(target), "udp"] if 0 < port < 65536 and 0 < target < 65536:
            return port, host, target, "udp"
    raise ControlError("a forward is not [PORT, HOST, PORT]")


# The side of the other commands --------------------------------------------------------------------------------------


class ControlClient:
    """Opens connections to the `up` whose state directory this is. Each request has its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def ask(self, request: dict[str, Any], *, timeout: float = REQUEST_SECONDS) -> dict[str, Any]:
        """Send a request and return its reply. Raises ControlError and ConnectError."""
        transport, opening = await self._open(request)
        try:
            return await opening.reply(timeout)
        finally:
            transport.abort()

    async def dial(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Open a stream on the overlay. Raises ControlError and ConnectError."""
        transport, opening = await self._opened("dial", host, port, timeout)
        protocol = protocol_factory()
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
        _feed(protocol, opening.rest)
        return transport, protocol

    async def datagrams(
        self, protocol_factory: DatagramFactory, host: str, port: int, *, timeout: float
    ) -> DatagramSocket:
        """Open a socket on the overlay, connected to a port. Raises ControlError and ConnectError."""
        transport, opening = await self._opened("datagrams", host, port, timeout)
        protocol = protocol_factory()
        socket = StreamDatagrams(transport)
        stream = StreamProtocol(protocol)
        transport.set_protocol(stream)
        transport.resume_reading()
        protocol.connection_made(socket)
        _feed(stream, opening.rest)
        return socket, protocol

    async def _opened(self, do: str, host: str, port: int, timeout: float) -> tuple[asyncio.Transport, _Opening]:
        transport, opening = await self._open({"do": do, "host": host, "port": port, "timeout": timeout})
        try:
            await opening.reply(timeout + REQUEST_SECONDS)
        except BaseException:
            transport.abort()
            raise
        if opening.lost.is_set():
            raise Failed(f"dial {host}:{port}: `up` closed the connection")
        return transport, opening

    @asynccontextmanager
    async def serving(self, forwards: Sequence[Forward]) -> AsyncIterator[tuple[list[str], asyncio.Event]]:
        """Offer local servers until the context is left. Yields our overlay addresses, and an event that is set when
        `up` ends. Raises ControlError."""
        transport, opening = await self._open({"do": "serve", "forwards": forwards})
        try:
            reply = await opening.reply(REQUEST_SECONDS)
            transport.resume_reading()  # to notice its end
            yield list(reply.get("addresses", ())), opening.lost
        finally:
            transport.abort()

    async def _open(self, request: dict[str, Any]) -> tuple[asyncio.Transport, _Opening]:
        try:
            with _short(self._directory) as path:
                transport, opening = await asyncio.get_running_loop().create_unix_connection(_Opening, path)
        except OSError as error:
            raise ControlError(f"no `netbird-peer up` runs with the state in {self._directory}") from error
        transport.write(json.dumps(request).encode() + b"\n")
        return transport, opening


class _Opening(asyncio.Protocol):
    """The client's side until the reply is there."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.rest = b""
        self.lost = asyncio.Event()

    async def reply(self, timeout: float) -> dict[str, Any]:
        """Raises ControlError, and ConnectError for a failed dial."""
        try:
            async with asyncio.timeout(timeout):
                reply: dict[str, Any] = json.loads(await self._line)
        except TimeoutError:
            raise ControlError("`up` does not answer") from None
        if "error" in reply:
            raise KINDS.get(reply["error"], ControlError)(str(reply.get("message", "")))
        return reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        line, newline, rest = self._received.partition(b"\n")
        if newline and not self._line.done() and self._transport is not None:
            self._transport.pause_reading()
            self.rest = bytes(rest)
            self._line.set_result(bytes(line))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        if not self._line.done():
            self._line.set_exception(ControlError("`up` closed the connection"))
            self._line.exception()  # a caller that has gone does not want it


def _feed(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Give a protocol the bytes that arrived before it."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        while data:
            buffer = memoryview(protocol.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]
    elif data and isinstance(protocol, asyncio.Protocol):
        protocol.data_received(data)
