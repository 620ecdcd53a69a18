"""Joins two streams, one of the overlay and one of this machine: for `serve`, `forward` and `socks`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, cast

from netbird_overlay.driver import Connection, ProtocolFactory
from netbird_overlay.errors import ConnectError

STREAMS: Final = 1024
"""Maximum number of streams that a listener carries at once; further ones are reset."""


class Dial(Protocol):
    """Opens a stream on the overlay, to an address or a name."""

    async def __call__(self, protocol_factory: ProtocolFactory, host: str, port: int, *, timeout: float) -> Connection:
        """Raises ConnectError, and OSError where another process opens the stream for us."""


class Pipe(asyncio.Protocol):
    """One side of a pair: received data is written to the other side, with back-pressure."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Pipe | None = None
        self.finished = False
        self.lost = False
        self.ended = asyncio.Event()
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.other is None:
            self.transport.pause_reading()  # until `join` sets the other side

    def join(self, other: Pipe) -> None:
        self.other, other.other = other, self
        for side in (self, other):
            if side._early:
                side.data_received(side._early)
                side._early = b""
        for side in (self, other):
            if side.lost:
                side._end_other(None)
            elif side.transport is not None:
                side.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early += data  # reading pauses, so this is at most what came with the stream
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.finished = True
        other = self.other
        if other is None or other.transport is None:
            return False
        if other.finished:  # both directions are finished
            other.transport.close()
            return False
        other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.ended.set()
        self._end_other(exc)

    def _end_other(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            if exc is None:
                self.other.transport.close()
            else:
                self.other.transport.abort()


class Forwarder:
    """A protocol factory for a listener: carries each accepted stream to the one that `connect` opens.

    Args:
        connect: opens the other stream with `Pipe` as its protocol. Raises ConnectError or OSError.
        streams: maximum number of streams at once; further ones are reset.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, connect: Callable[[], Awaitable[Connection]], *, streams: int = STREAMS
    ) -> None:
        self._tasks = tasks
        self._connect = connect
        self._free = streams

    def __call__(self) -> Pipe:
        pipe = Pipe()
        self._tasks.create_task(self._carry(pipe))
        return pipe

    async def _carry(self, pipe: Pipe) -> None:
        if not self._free:
            await asyncio.sleep(0)  # until the listener has given the pipe its transport
            _abort(pipe)
            return
        self._free -= 1
        try:
            _, other = await self._connect()
            pipe.join(cast(Pipe, other))
            await pipe.ended.wait()
        except (OSError, ConnectError):
            _abort(pipe)
        except Exception as error:
            report(error, "a stream could not be carried")
            _abort(pipe)
        finally:
            self._free += 1


def to_local(host: str, port: int) -> Callable[[], Awaitable[Connection]]:
    """Return a function that connects to a TCP server of this machine or its network."""

    async def connect() -> Connection:
        return await asyncio.get_running_loop().create_connection(Pipe, host, port)

    return connect


def to_overlay(dial: Dial, host: str, port: int, *, timeout: float) -> Callable[[], Awaitable[Connection]]:
    """Return a function that opens a stream on the overlay."""

    async def connect() -> Connection:
        return await dial(Pipe, host, port, timeout=timeout)

    return connect


def report(error: Exception, message: str) -> None:
    """Report a defect that concerns one stream; all others go on."""
    asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})


def _abort(pipe: Pipe) -> None:
    if pipe.transport is not None:
        pipe.transport.abort()
