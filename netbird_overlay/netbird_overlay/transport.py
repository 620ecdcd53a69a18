"""One TCP connection inside the tunnel, as an `asyncio.Transport`.

Protocols, asyncio's streams and `SSLProtocol` use it exactly as they use a socket's transport. It also does what
asyncio's own transports do without documentation: it supports `BufferedProtocol`, it has `_force_close` (without it a
failed or hanging TLS handshake never resolves), and it drops a `write` after the end.

The engine buffers data in flight (its send buffer, the peer's window); the deque here buffers data that the engine did
not take, and the watermarks apply to that deque.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

if TYPE_CHECKING:
    from netbird_overlay.engine import Engine

HIGH_WATER_BYTES = 256 << 10
LOW_WATER_BYTES = 64 << 10
LINGER = 60.0
"""Maximum time in seconds without progress in which a closed connection still delivers its data; then it is reset."""
LINGERS = 10
"""Maximum number of such intervals. A reader that takes a little in each cannot keep a closed connection longer."""

Chunk = bytes | bytearray | memoryview
_CHUNKS = (bytes, bytearray, memoryview)


class Connections(Protocol):
    """The part of the driver that a transport uses."""

    @property
    def engine(self) -> Engine: ...

    @property
    def linger(self) -> float:
        """Maximum time in seconds without progress in which a closed connection still delivers its data."""

    def touch(self) -> None:
        """Schedule a flush after a call on the engine."""

    def forget(self, conn: int) -> None: ...


def lost_because(reason: str) -> Exception | None:
    """Return the exception for `connection_lost` by the engine's reason; None for an orderly end."""
    if reason in ("finished", "local"):
        return None
    if reason == "reset":
        return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    if reason == "timeout":
        return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    return ConnectionAbortedError(errno.ECONNABORTED, f"the tunnel ended the connection: {reason}")


class TunnelTransport(asyncio.Transport):
    """The transport of one connection of the engine.

    It calls the protocol's `connection_lost` exactly once, and never from inside a call of the protocol.
    """

    __slots__ = (
        "_buffer",
        "_buffered_protocol",
        "_closing",
        "_conn",
        "_driver",
        "_ended",
        "_engine",
        "_eof_held",
        "_eof_written",
        "_exc",
        "_held",
        "_high",
        "_linger",
        "_loop",
        "_lost",
        "_low",
        "_paused",
        "_protocol",
        "_protocol_paused",
        "_size",
        "_written",
    )

    # loop.start_tls requires this attribute; the name is asyncio's.
    _start_tls_compatible: ClassVar[bool] = True

    def __init__(
        self,
        driver: Connections,
        loop: asyncio.AbstractEventLoop,
        conn: int,
        protocol: asyncio.BaseProtocol,
        extra: dict[str, Any],
    ) -> None:
        super().__init__(extra)
        self._driver = driver
        self._engine = driver.engine
        self._loop = loop
        self._conn = conn
        self._buffer: deque[bytes] = deque()
        self._size = 0
        self._written = 0  # the part of the first chunk that the engine took, so that no rest is copied
        self._high, self._low = HIGH_WATER_BYTES, LOW_WATER_BYTES
        self._held: deque[bytes] = deque()
        self._eof_held = False
        self._eof_written = False
        self._paused = False
        self._protocol_paused = False
        self._closing = False
        self._ended = False
        self._lost = False
        self._exc: Exception | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        state = "lost" if self._lost else "closing" if self._closing else "open"
        return f"<TunnelTransport {self._conn} {self.get_extra_info('peername')} {state} buffered={self._size}>"

    # The protocol --------------------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: asyncio.BaseProtocol | None = protocol
        self._buffered_protocol = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def is_closing(self) -> bool:
        return self._closing

    # Reading -------------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        if self._paused or self._closing:
            return
        self._paused = True
        self._engine.pause_reading(self._conn)

    def resume_reading(self) -> None:
        if not self._paused or self._closing:
            return
        self._paused = False
        self._engine.resume_reading(self._conn)
        self._driver.touch()
        if self._held or self._eof_held or self._ended:
            self._loop.call_soon(self._release)

    def on_data(self, data: bytes) -> None:
        """Handle the engine's `Data`. While reading is paused, events already taken from the engine are queued."""
        if self._closing:
            return
        if self._paused or self._held:
            self._held.append(data)
        else:
            self._feed(data)

    def on_eof(self) -> None:
        """Handle the engine's `Eof`."""
        if self._closing:
            return
        if self._paused or self._held:
            self._eof_held = True
            return
        self._eof()

    def _release(self) -> None:
        """Pass on data that was queued while reading was paused, in order."""
        while self._held and not self._paused and not self._closing:
            # Data that arrives meanwhile goes to the end of the queue, so that the order stays.
            self._feed(self._held.popleft())
        if self._held or self._paused or self._closing:
            return
        if self._eof_held:
            self._eof_held = False
            self._eof()
        if self._ended and not self._paused:
            self._lose(self._exc)

    def _feed(self, data: bytes) -> None:
        try:
            if not self._buffered_protocol:
                cast(asyncio.Protocol, self._protocol).data_received(data)
                return
            rest = memoryview(data)
            while rest:
                if self._closing:
                    return
                if self._paused:
                    self._held.appendleft(bytes(rest))
                    return
                if not self._buffered_protocol:  # the protocol was replaced meanwhile, as in an upgrade
                    cast(asyncio.Protocol, self._protocol).data_received(bytes(rest))
                    return
                protocol = cast(asyncio.BufferedProtocol, self._protocol)
                room = memoryview(protocol.get_buffer(len(rest)))
                count = min(len(room), len(rest))
                if not count:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                room[:count] = rest[:count]
                protocol.buffer_updated(count)
                rest = rest[count:]
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # like asyncio's transports: ends the connection, not the loop
            self._fatal(exc, "the protocol failed on received data")

    def _eof(self) -> None:
        try:
            keep_open = cast(asyncio.Protocol, self._protocol).eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal(exc, "the protocol failed on the end of the stream")
            return
        if not keep_open:
            self.close()

    # Writing -------------------------------------------------------------------------------------------------------

    def write(self, data: Chunk) -> None:
        if not isinstance(data, _CHUNKS):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or self._ended or not data:
            return
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        taken = 0
        if not self._buffer:
            taken = self._engine.write(self._conn, data)
            self._driver.touch()
            if taken == size:
                return
        if isinstance(data, bytes):
            if not self._buffer:
                self._written = taken
        else:
            data = bytes(memoryview(data).cast("B")[taken:])
        self._buffer.append(data)
        self._size += size - taken
        self._check_high()

    def writelines(self, list_of_data: Iterable[Chunk]) -> None:
        for data in list_of_data:
            self.write(data)

    def write_eof(self) -> None:
        if self._closing or self._eof_written:
            return
        self._eof_written = True
        if not self._buffer:
            self._engine.write_eof(self._conn)
            self._driver.touch()

    def can_write_eof(self) -> bool:
        return True

    def on_writable(self) -> None:
        """Handle the engine's `Writable`: half of its send buffer is free again."""
        while self._buffer:
            chunk = self._buffer[0]
            taken = self._engine.write(self._conn, chunk, self._written)
            self._size -= taken
            self._written += taken
            if self._written < len(chunk):
                break
            self._written = 0
            self._buffer.popleft()
        self._driver.touch()
        if not self._buffer:
            if self._closing:
                self._engine.close(self._conn)
            elif self._eof_written:
                self._engine.write_eof(self._conn)
        self._check_low()

    def get_write_buffer_size(self) -> int:
        return self._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._check_high()

    def _check_high(self) -> None:
        if self._size > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._notify("pause_writing")

    def _check_low(self) -> None:
        if self._protocol_paused and self._size <= self._low and not self._lost:
            self._protocol_paused = False
            self._notify("resume_writing")

    def _notify(self, callback: str) -> None:
        try:
            getattr(self._protocol, callback)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, f"the protocol's {callback}() failed")

    # Ending --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading; written data is still delivered."""
        if self._closing:
            return
        self._closing = True
        self._held.clear()
        if self._ended:
            self._loop.call_soon(self._lose, self._exc)
            return
        if not self._buffer:
            self._engine.close(self._conn)
            self._driver.touch()
            return
        self._linger = self._loop.call_later(self._driver.linger, self._lingered, self._size, LINGERS - 1)
        if self._paused:
            # No data is passed on any more. Reading resumes all the same, because with a full receive window the other
            # end's FIN could not arrive.
            self._engine.resume_reading(self._conn)
            self._driver.touch()

    def _lingered(self, before: int, left: int) -> None:
        """Reset a closed connection whose buffer did not shrink, or not soon enough."""
        self._linger = None
        if self._lost or not self._buffer:  # an empty buffer is the engine's, which has its own limit
            return
        if left and self._size < before:
            self._linger = self._loop.call_later(self._driver.linger, self._lingered, self._size, left - 1)
            return
        self._exc = self._exc or TimeoutError(errno.ETIMEDOUT, "the other end did not take the remaining data")
        self.abort()

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        """Reset the connection; asyncio's `SSLProtocol` calls it by this name."""
        if self._lost:
            return
        self._closing = True
        self._held.clear()
        self._buffer.clear()
        self._size = self._written = 0
        if self._exc is None and isinstance(exc, Exception):
            self._exc = exc
        if self._ended:
            self._loop.call_soon(self._lose, self._exc)
        else:
            self._engine.abort(self._conn)
            self._driver.touch()

    def on_closed(self, reason: str) -> None:
        """Handle the engine's `Closed`, the last event of this connection."""
        self._ended = True
        if self._exc is None:
            self._exc = lost_because(reason)
        if reason == "finished" and not self._closing and (self._held or self._eof_held):
            return  # all data arrived, but the paused reader has not taken all of it yet
        self._lose(self._exc)

    def on_broken(self, exc: Exception) -> None:
        """End the connection because the engine or its socket failed."""
        self._ended = True
        self._lose(self._exc or exc)

    def _lose(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._buffer.clear()
        self._held.clear()
        self._size = self._written = 0
        self._driver.forget(self._conn)
        protocol, self._protocol = self._protocol, None
        try:
            cast(asyncio.BaseProtocol, protocol).connection_lost(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self._report(failure, "the protocol's connection_lost() failed")

    def _fatal(self, exc: BaseException, message: str) -> None:
        self._report(exc, message)
        self._force_close(exc)

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": f"tunnel: {message}", "exception": exc, "transport": self, "protocol": self._protocol}
        )
