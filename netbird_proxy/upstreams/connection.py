"""The client side of an HTTP/1.1 connection to an upstream: one exchange at a time, on any asyncio transport.

The code minimizes the work for each exchange: the head is a single write, body pieces pass through unchanged, a wait
costs one future, and the head's timer is not reset for each exchange but checks the deadline when it fires.

Each piece arrives as `bytes` of its own, and not in one buffer for the connection (`BufferedProtocol`): the piece waits
for its reader, so it would be copied out of the buffer, which costs more than uvloop's own copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import ssl
import struct
from typing import Protocol, cast

import netbird_http
from netbird_host.transports import write_pieces
from netbird_proxy.api.errors import HeadTimeout, ProtocolViolation, TlsFailed, UpstreamClosed, UpstreamError
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.upstreams.kernel import drain, is_readable
from netbird_proxy.upstreams.protocols import BodyLengthMismatch, HeadLimits, Informational

HIGH_WATER = 131072
"""Buffered body bytes for a slow client above which reading from the upstream pauses."""
LOW_WATER = 32768
"""Buffered body bytes below which reading resumes."""

# Some servers ignore the body of a request with these methods, and read it as the next request (RFC 9110 §9.3.1).
_CONTENT_MEANS_NOTHING = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
KEEP_ALIVE_MARGIN = 1.0
"""Seconds before the end of an upstream's keep-alive time in which an idle connection is not used again, since the
upstream could close it while a request is on its way."""
_RESET = struct.pack("ii", 1, 0)


class ConnectionOwner(Protocol):
    """The owner of connections, usually a pool."""

    def gone(self, connection: Http1Connection) -> None:
        """The connection cannot carry another exchange. Called as soon as that is certain, possibly more than once."""

    def given_up(self, connection: Http1Connection) -> None:
        """The exchange has aborted the connection. Called possibly more than once."""


class Http1Connection(asyncio.Protocol):
    """A connection to an upstream. `UpstreamConnection` documents the methods for an exchange.

    Every failure ends the whole connection. `failure` then holds the error, which present and later calls raise.

    Args:
        name: name of the upstream, for messages: `http://10.0.0.7:8080`.
        head_timeout: maximum time in seconds to the answer's head, without progress of the request's body and without
            informational heads; then HeadTimeout.
        owner: notified when the connection cannot carry another exchange.
    """

    __slots__ = (
        "_answer",
        "_deadline",
        "_doubtful",
        "_drain_waiter",
        "_head_timeout",
        "_limits",
        "_missing",
        "_owner",
        "_read_paused",
        "_request_open",
        "_timer",
        "_transport",
        "_waiter",
        "_write_paused",
        "exchanges",
        "failure",
        "idle_since",
        "loop",
        "name",
        "reusable_until",
        "reused",
    )

    def __init__(
        self,
        *,
        name: str = "upstream",
        head_timeout: float = 300.0,
        limits: HeadLimits | None = None,
        owner: ConnectionOwner | None = None,
    ) -> None:
        self.name = name
        self.reused = False
        self.exchanges = 0
        self.idle_since = 0.0
        self.reusable_until = math.inf  # in the loop's time
        self.failure: UpstreamError | None = None
        self.loop = asyncio.get_running_loop()
        self._head_timeout = head_timeout
        self._limits = limits or HeadLimits()
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._request_open = False
        self._doubtful = False  # the upstream may have read two requests where one was sent
        self._missing = -1  # body bytes missing to the head's Content-Length; -1 without one
        self._waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._write_paused = False
        self._read_paused = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        if self.failure is not None:
            state = f"failed: {self.failure}"
        elif self._answer is None:
            state = "idle"
        else:
            state = "complete" if self._answer.complete and not self._request_open else "busy"
        return f"<Http1Connection {self.name} {state}, {self.exchanges} exchanges>"

    # Called by the exchange ------------------------------------------------------------------------------------------

    def send_head(self, head: bytes, *, method: bytes, has_body: bool, upgrade: bool = False) -> None:
        if self._answer is not None or self._transport is None:
            raise RuntimeError(f"{self!r} is not ready for a request")
        limits = self._limits
        answer = Answer(method, max_bytes=limits.bytes, max_lines=limits.lines, upgrade=upgrade)
        answer.connection = self
        self._answer = answer
        self._request_open = has_body
        self._doubtful = has_body and method in _CONTENT_MEANS_NOTHING
        self._missing = -1
        self.exchanges += 1
        if has_body and (promised := _CONTENT_LENGTH.search(head)) is not None:
            self._missing = int(promised[1])
        if self.failure is None:
            self._transport.write(head)

    async def send_body(self, data: bytes, *, chunked: bool) -> None:
        if not data:
            return  # an empty chunk would end the body
        transport = self._transport
        if self.failure is not None or transport is None:
            raise self._failed()
        if not self._request_open:
            raise RuntimeError(f"{self!r} has no open request body")
        if self._missing >= 0:
            if chunked or len(data) > self._missing:
                raise self._mismatch(f"over by {len(data) - self._missing}")
            self._missing -= len(data)
        if chunked:
            write_pieces(transport, (b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            transport.write(data)
        while self._write_paused:
            if self._drain_waiter is not None:
                raise RuntimeError("two tasks send on the same connection")
            self._arm()
            self._drain_waiter = self.loop.create_future()
            try:
                await self._drain_waiter
            finally:
                self._drain_waiter = None
            if self.failure is not None:
                raise self._failed()
        self._deadline = self.loop.time() + self._head_timeout

    def finish_body(self, trailers: list[RawHeader], *, chunked: bool) -> None:
        if not self._request_open:
            return
        if self._missing > 0:
            raise self._mismatch(f"short by {self._missing}")
        self._request_open = False
        if self.failure is not None or self._transport is None:
            return
        self._deadline = self.loop.time() + self._head_timeout
        if chunked:
            if trailers:
                lines = b"".join(b"%b: %b\r\n" % pair for pair in trailers)
                self._transport.write(b"0\r\n" + lines + b"\r\n")
            else:
                self._transport.write(b"0\r\n\r\n")
        elif self._answer is not None and self._answer.switched and self._transport.can_write_eof():
            self._transport.write_eof()

    async def answer(self, informational: Informational | None = None) -> Answer:
        answer = self._answer
        if answer is None:
            raise RuntimeError(f"{self!r} has no open request")
        while True:
            while (interim := answer.take_interim()) is not None:
                if informational is not None:
                    await informational(*interim)
            if answer.head_complete:
                if isinstance(self.failure, ProtocolViolation):
                    raise self._failed()  # before any caller sees the head
                if answer.switched:
                    self._request_open = True  # the raw stream, until `finish_body`
                return answer
            if self.failure is not None:
                raise self._failed()
            self._arm()
            waiter = self._wait()
            try:
                await waiter
            finally:
                self._waiter = None

    @property
    def half_closes(self) -> bool:
        return self._transport is not None and self._transport.can_write_eof()

    @property
    def nothing_received(self) -> bool:
        return self._answer is None or not self._answer.fed

    def abort(self) -> None:
        self._fail(UpstreamClosed(f"{self.name}: aborted by the proxy"))
        if self._owner is not None:
            self._owner.given_up(self)

    # Called by the owner ---------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """True if the connection is idle and open."""
        return (
            self._answer is None
            and self.failure is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def reusable(self) -> bool:
        """True if the connection is usable, no bytes or end from the upstream wait in the kernel, and the upstream's
        keep-alive time is not about to end."""
        transport = self._transport
        if not self.usable or transport is None or self.loop.time() >= self.reusable_until:
            return False
        sock = transport.get_extra_info("socket")
        return sock is None or not is_readable(sock)

    def finish(self) -> bool:
        """End the exchange. Returns True if the connection may carry another; else it is closed now.

        After a complete exchange the connection is closed properly; an incomplete one is reset.
        """
        answer, self._answer = self._answer, None
        transport = self._transport
        if self.failure is not None or transport is None:
            self.abort()
            return False
        if answer is not None:
            if not answer.complete or self._request_open or self._write_paused or answer.excess:
                self._fail(UpstreamClosed(f"{self.name}: aborted by the proxy before the exchange was complete"))
                return False
            if answer.switched or not answer.keep_alive or self._doubtful:
                self.close()
                return False
            if (seconds := answer.kept_for) is not None:
                self.reusable_until = self.loop.time() + seconds - KEEP_ALIVE_MARGIN
        if transport.is_closing():
            self.close()
            return False
        if self._read_paused:
            self._read_paused = False
            transport.resume_reading()
        return True

    def close(self) -> None:
        """Close the connection properly. Only for a connection without an exchange."""
        if self.failure is None:
            self.failure = UpstreamClosed(f"{self.name}: closed by the proxy")
        if self._transport is not None:
            self._transport.close()
        self._ended()

    # Called by the transport -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.failure is not None:  # aborted while it was being opened
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            # Unrequested bytes would be read as the answer to the next request.
            self._fail(ProtocolViolation(f"{self.name}: bytes without a request"))
            return
        try:
            answer.feed(data)
        except netbird_http.Violation as error:
            self._fail(ProtocolViolation(f"{self.name}: {error}"))
            return
        if answer.buffered > HIGH_WATER and not self._read_paused and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> bool:
        answer = self._answer
        if answer is None or not answer.feed_eof():
            self._fail(self._closed(None))
            return False
        self._wake()
        if answer.switched and self._transport is not None:
            # TLS has no half-close, and warns on an attempt.
            return self._transport.get_extra_info("sslcontext") is None
        if self.failure is None:
            self.failure = self._closed(None)
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        answer = self._answer
        if exc is not None and self.failure is None and answer is not None and self._transport is not None:
            # A write failed. If the upstream answered early and closed, its answer has arrived and is still read.
            self._read_paused = True  # all waiting bytes are read
            drain(self._transport, self.data_received)
        if self.failure is None:
            self.failure = self._closed(exc)
        self._ended()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        waiter = self._drain_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------------------------------------------------------------

    def _taken(self, answer: Answer) -> None:
        """Body bytes have left the buffer."""
        if (
            self._read_paused
            and answer.buffered <= LOW_WATER
            and self.failure is None
            and answer is self._answer
            and self._transport is not None
        ):
            self._read_paused = False
            self._transport.resume_reading()

    def _wait(self) -> asyncio.Future[None]:
        """A future that is done once bytes arrive or the connection fails. Only one task waits, and clears it."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read the same answer")
        waiter = self._waiter = self.loop.create_future()
        return waiter

    def _wake(self) -> None:
        for waiter in (self._waiter, self._drain_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _arm(self) -> None:
        answer = self._answer
        if answer is None or answer.head_complete:
            return
        self._deadline = self.loop.time() + self._head_timeout
        if self._timer is None:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        answer = self._answer
        if answer is None or answer.head_complete or (self._waiter is None and self._drain_waiter is None):
            return  # no task waits; the next one that waits sets the timer again
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._on_timer)
        else:
            self._fail(HeadTimeout(f"{self.name}: no answer for {self._head_timeout:g} s"))

    def _fail(self, error: UpstreamError) -> None:
        if self.failure is None:
            self.failure = error
        transport = self._transport
        if transport is not None and not transport.is_closing():
            # An upstream that reads until the close must not take a truncated request for a complete one.
            sock = transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError, AttributeError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if transport is not None:
            transport.abort()
        self._ended()

    def _ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()
        if self._owner is not None:
            self._owner.gone(self)

    def _closed(self, exc: BaseException | None) -> UpstreamError:
        if self._answer is None:
            what = "closed while idle"
        elif not self._answer.fed:
            what = "closed before its answer"
        elif not self._answer.complete:
            what = "closed within its answer"
        else:
            what = "closed after its answer"
        error: UpstreamError
        if isinstance(exc, ssl.SSLError) and self.exchanges <= 1 and self.nothing_received:
            # With TLS 1.3 the upstream reports a missing client certificate only after the handshake.
            error = TlsFailed(f"{self.name}: {exc}")
        else:
            error = UpstreamClosed(f"{self.name}: {what}" + (f" ({exc})" if exc is not None else ""))
        error.__cause__ = exc
        return error

    def _failed(self) -> UpstreamError:
        failure = self.failure
        if failure is None:
            return UpstreamClosed(f"{self.name}: not connected")
        # A fresh traceback each time: the same failure may be raised in two tasks.
        return failure.with_traceback(None)

    def _mismatch(self, how: str) -> BodyLengthMismatch:
        error = BodyLengthMismatch(f"{self.name}: request body and Content-Length differ: {how} bytes")
        self.abort()
        return error


class Answer(netbird_http.Answer):
    """The answer to an exchange. Implements `UpstreamAnswer`. After its connection was released, only bytes that
    arrived before can be read."""

    __slots__ = ("connection",)

    connection: Http1Connection

    async def read(self) -> bytes:
        while (piece := self.take()) is None:
            if self.complete:
                return b""
            connection = self.connection
            if connection.failure is not None:
                raise connection._failed()
            if connection._answer is not self:
                raise RuntimeError("the connection was released before the answer was complete")
            waiter = connection._wait()
            try:
                await waiter
            finally:
                connection._waiter = None
        if self.connection._read_paused:
            self.connection._taken(self)
        return piece
