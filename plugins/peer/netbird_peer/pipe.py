"""Forwards accepted streams to a TCP address, for `netbird-proxy peer serve`."""

from __future__ import annotations

import asyncio
from typing import cast


class Pipe(asyncio.Protocol):
    """One side of a pair: received data is written to the other side, with back-pressure."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Pipe | None = None
        self.finished = False
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.other is None:
            self.transport.pause_reading()  # until `join` sets the other side

    def join(self, other: Pipe) -> None:
        self.other, other.other = other, self
        for side in (self, other):
            if side.lost:
                side._end_other(None)
            elif side.transport is not None:
                side.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
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
        self._end_other(exc)

    def _end_other(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            if exc is None:
                self.other.transport.close()
            else:
                self.other.transport.abort()


class Forwarder:
    """A protocol factory for a listener: forwards each stream to one address."""

    def __init__(self, group: asyncio.TaskGroup, host: str, port: int) -> None:
        self._group = group
        self._host, self._port = host, port

    def __call__(self) -> Pipe:
        pipe = Pipe()
        self._group.create_task(self._connect(pipe))
        return pipe

    async def _connect(self, pipe: Pipe) -> None:
        try:
            _, other = await asyncio.get_running_loop().create_connection(Pipe, self._host, self._port)
        except OSError:
            if pipe.transport is not None:
                pipe.transport.abort()
            return
        pipe.join(other)
