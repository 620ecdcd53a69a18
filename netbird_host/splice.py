"""Two connections joined: bytes from each are written to the other, with back-pressure.

The end of one direction ends both connections: HTTP/2 and WebSockets, which are joined here, have no half-closed state.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

LINGER_SECONDS = 10.0
"""Time in which the rest of one side's bytes may be written after the other side ended; on expiry they are lost."""


class _End(asyncio.Protocol):
    """The protocol of one of the two connections; `other` is the transport of the other one."""

    transport: asyncio.Transport
    other: asyncio.Transport

    def __init__(self, on_end: Callable[[], None], partner: _End | None = None) -> None:
        self._on_end = on_end
        self._partner = partner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's classes are no subclasses
        if self._partner is not None:
            self._partner.other = self.transport

    def data_received(self, data: bytes) -> None:
        self.other.write(data)

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.other.abort()
        elif not self.other.is_closing():
            self.other.close()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self.other.abort)
        self._on_end()


async def splice(
    client: asyncio.Transport, inner: socket.socket, head: bytes = b"", *, on_end: Callable[[], None] = lambda: None
) -> None:
    """Joins a client's connection and a connected socket, and returns when they are joined. Both end together.

    Args:
        client: a connection whose reading is paused; no bytes of it are read before they are joined.
        inner: a connected, non-blocking stream socket, which belongs to this function from now on.
        head: bytes of the client that were read earlier.
        on_end: called once when either side has ended, also if they were never joined.
    """
    ended = False

    def end() -> None:
        nonlocal ended
        if not ended:
            ended = True
            on_end()

    outer_end = _End(end)
    inner_end = _End(end, outer_end)
    outer_end.transport = inner_end.other = client
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: inner_end, sock=inner)
    except BaseException:
        inner.close()
        client.abort()
        end()
        raise
    if client.is_closing():
        transport.abort()
        return
    transport.write(head)
    client.set_protocol(outer_end)
    client.resume_reading()
