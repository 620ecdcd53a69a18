"""Transports in memory: what a socket's transport does, at a test's command.

`MemoryTransport` is the wire end that a protocol holds: a test feeds it bytes and looks at what was written, or two are
joined by `connect`. Reads pause, writes fill up, either side closes or breaks, `BufferedProtocol`s are served, and TLS
can be laid over it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from netbird_proxy.api.model import Address
from netbird_proxy.api.tunnels import ProtocolFactory


class MemoryTransport(asyncio.Transport):
    """One end of a stream.

    Attributes:
        sent: what the protocol has written and the wire has taken, unless a `peer` takes it.
        writes: the same, one entry a write.
        peer: the transport at the other end, if there is one.
        aborted: the protocol reset the stream.
        eof_sent: the protocol half-closed.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, *, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra or {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.peer: MemoryTransport | None = None
        self.aborted = False
        self.eof_sent = False
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._closing = False
        self._paused = False
        self._incoming: deque[bytes | None] = deque()  # None is the end
        self._stalled = False
        self._outgoing = bytearray()
        self._high, self._low = 65536, 16384
        self._protocol_paused = False

    @classmethod
    def open(cls, protocol: asyncio.BaseProtocol, *, extra: dict[str, Any] | None = None) -> MemoryTransport:
        """A transport whose protocol has had its `connection_made`."""
        transport = cls(protocol, extra=extra)
        protocol.connection_made(transport)
        return transport

    # The wire: what a test does --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes arrive. Kept while the protocol has paused reading; dropped after it closed."""
        self._incoming.append(bytes(data))
        self._deliver()

    def feed_eof(self) -> None:
        """The other side half-closes."""
        self._incoming.append(None)
        self._deliver()

    def break_off(self, error: Exception | None = None) -> None:
        """The stream breaks, by default with a reset."""
        self._lose(error or ConnectionResetError("connection reset by peer"))

    def stall(self) -> None:
        """The other side stops reading: writes pile up."""
        self._stalled = True

    def unstall(self) -> None:
        """It reads again, all of it."""
        self._stalled = False
        self._flush()

    @property
    def reading_paused(self) -> bool:
        return self._paused

    # The protocol's side ---------------------------------------------------------------------------------------------

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._deliver)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.eof_sent:
            raise RuntimeError("write after write_eof")
        if not data or self._closing:
            return
        self.writes.append(bytes(data))
        self._outgoing += data
        self._flush()
        if not self._protocol_paused and len(self._outgoing) > self._high:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self.eof_sent and not self._closing:
            self.eof_sent = True
            self._flush()

    def get_write_buffer_size(self) -> int:
        return len(self._outgoing)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else 4 * low if low is not None else 65536
        self._low = low if low is not None else self._high // 4

    def close(self) -> None:
        """Flush what is written, then lose the connection."""
        if self._closing:
            return
        self._closing = True
        self._incoming.clear()
        if not self._outgoing:
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self.aborted = True
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        """Called by asyncio's `SSLProtocol` on a fatal error."""
        self._closing = True
        self._outgoing.clear()
        self._incoming.clear()
        self._loop.call_soon(self._lose, exc)

    # -----------------------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        while self._incoming and not self._paused and not self._closing:
            data = self._incoming.popleft()
            protocol = self._protocol
            if data is None:
                if not protocol.eof_received():  # type: ignore[attr-defined]
                    self.close()
            elif isinstance(protocol, asyncio.BufferedProtocol):
                view = memoryview(data)
                while view:
                    buffer = memoryview(protocol.get_buffer(len(view)))
                    count = min(len(buffer), len(view))
                    buffer[:count] = view[:count]
                    protocol.buffer_updated(count)
                    view = view[count:]
            else:
                protocol.data_received(data)  # type: ignore[attr-defined]

    def _flush(self) -> None:
        if self._stalled:
            return
        if self._outgoing:
            data = bytes(self._outgoing)
            self._outgoing.clear()
            if self.peer is not None:
                self._loop.call_soon(self.peer.feed, data)
            else:
                self.sent += data
        if self._protocol_paused:
            self._protocol_paused = False
            self._protocol.resume_writing()
        if self.eof_sent and self.peer is not None:
            self._loop.call_soon(self.peer.feed_eof)
        if self._closing:
            self._loop.call_soon(self._lose, None)

    def _lose(self, exc: BaseException | None) -> None:
        if self.lost:
            return
        self.lost = self._closing = True
        self._outgoing.clear()
        self._incoming.clear()
        self._protocol.connection_lost(exc)  # type: ignore[arg-type]
        if self.peer is not None and not self.peer.lost:
            broken = self.aborted or exc is not None
            self._loop.call_soon(self.peer.break_off if broken else self.peer.feed_eof)


def connect(a: asyncio.BaseProtocol, b: asyncio.BaseProtocol) -> tuple[MemoryTransport, MemoryTransport]:
    """Join two protocols. `b`, the accepting side, is connected first."""
    first, second = MemoryTransport(a), MemoryTransport(b)
    first.peer, second.peer = second, first
    b.connection_made(second)
    a.connection_made(first)
    return first, second


class MemoryDialer:
    """A `Dialer` whose streams are in memory.

    Attributes:
        dialed: every address that was asked for, with its timeout.
        transports: our ends, in order, unless `serve` takes the other.
        serve: makes the protocol at the other end of each stream; without it the test feeds `transports`.
        fail: raised instead of dialing.
        gate: waited for before a dial answers.
    """

    def __init__(self, serve: ProtocolFactory | None = None) -> None:
        self.serve = serve
        self.fail: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self.dialed: list[tuple[Address, float]] = []
        self.transports: list[MemoryTransport] = []

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        self.dialed.append((address, timeout))
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        protocol = protocol_factory()
        if self.serve is not None:
            transport, _ = connect(protocol, self.serve())
        else:
            transport = MemoryTransport.open(protocol)
        self.transports.append(transport)
        return transport, protocol
