"""A connection after its 101: bytes both ways, unparsed, with back-pressure."""

from __future__ import annotations

import asyncio
from collections import deque

from netbird_proxy.listening.stream import Answered, ClientStream


class RawStream:
    """Implements `RawDownstream`. Made with the request for an upgrade; until the 101 it only buffers what follows.

    Attributes:
        buffered: bytes that the application has not read yet; above the listener's `body_buffer` reading pauses.
        switched: the 101 was sent.
        ended: the client has ended its side.
        gone: the connection is closed.
    """

    __slots__ = ("_chunks", "_protocol", "_request", "_waiter", "buffered", "ended", "gone", "switched")

    def __init__(self, protocol: ClientStream, request: Answered) -> None:
        self._protocol = protocol
        self._request = request
        self._chunks: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.buffered = 0
        self.switched = False
        self.ended = False
        self.gone = False

    # Called by the protocol -------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self.buffered += len(data)
        self._wake()
        self._protocol.regulate_reading()

    def feed_eof(self) -> None:
        self.ended = True
        self._wake()

    def lost(self) -> None:
        """The connection was closed properly. Bytes that arrived before can still be read."""
        self.gone = True
        self.feed_eof()

    # Called by the application ----------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        while not self._chunks:
            if self.ended:
                return b""
            if self._waiter is not None:
                raise RuntimeError("two tasks read the same stream")
            self._waiter = self._protocol.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._chunks.popleft()
        self.buffered -= len(data)
        self._protocol.regulate_reading()
        return data

    async def write(self, data: bytes) -> None:
        if self._request.done or self.gone:
            raise ConnectionResetError("the client has gone")
        protocol = self._protocol
        protocol.transport.write(data)
        if protocol.write_paused:
            await protocol.writable()

    def finish(self) -> bool:
        transport = self._protocol.transport
        if self.gone or not transport.can_write_eof():
            return False
        transport.write_eof()
        return True

    def close(self) -> None:
        if not self._request.done:
            self._request.done = True
            self._protocol.close_raw(self._request)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
