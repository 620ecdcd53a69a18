"""A request on one of our connections, as the application sees it: ASGI's `receive` and `send`, and extensions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from netbird_host.transports import write_pieces
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.asgi import Message
from netbird_proxy.http.framing import (
    UnframeableResponse,
    checked,
    field_lines,
    informational_head,
    plain_head,
    switching_head,
)
from netbird_proxy.listening.pace import BodyPatience
from netbird_proxy.listening.raw import RawStream
from netbird_proxy.listening.stream import ClientStream

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Above this size, copying a body behind its head costs more than a second entry in the transport's queue.
_JOIN_BYTES = 16384

UNDECIDED: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3
NO_BODY: Final = 4

_NO_PIECES: list[bytes] = []  # replaced before the first piece, never changed in place


class ServedRequest:
    """Implements `DownstreamConnection`. The protocol fills in the request, the application's messages the response.

    Attributes:
        complete: the last byte of the request has arrived.
        framing: framing of the response's body; UNDECIDED until its head is written. After that, a failure can only be
            shown to the client by truncation.
        remaining: bytes that are missing to the declared length.
        done: the last byte of the response was written, or the response was abandoned.
        body_patience: time that the application may still wait for the body; None before it first waits.
        raw: the stream that the connection becomes if the requested upgrade is granted; else None.
    """

    __slots__ = (
        "body_patience", "buffered", "chunks", "complete", "done", "empty_query", "ended", "expects", "fields",
        "framing", "gone", "has_body", "head_only", "held_at", "http11", "keep_alive", "protocol", "raw", "remaining",
        "status", "task", "trailers", "upgrade", "waiter", "will_trail",
    )  # fmt: skip

    def __init__(
        self, protocol: ClientStream, head_only: bool, http11: bool, keep_alive: bool, has_body: bool, expects: bool
    ) -> None:
        # Each store costs time on every request, so attributes that `send` always sets first are only declared here.
        self.protocol = protocol
        self.head_only = head_only
        self.http11 = http11
        self.keep_alive = keep_alive
        self.has_body = has_body
        self.expects = expects
        self.task: asyncio.Task[None] | None = None
        self.chunks: list[bytes] = _NO_PIECES
        self.waiter: asyncio.Future[None] | None = None
        self.trailers: list[RawHeader] | None = None
        self.raw: RawStream | None = None
        self.body_patience: BodyPatience | None = None
        self.gone = self.complete = self.ended = self.will_trail = self.done = self.upgrade = self.empty_query = False
        self.buffered = self.status = self.framing = 0
        self.fields: list[bytes] = _NO_PIECES
        self.remaining: int
        self.held_at: int

    @property
    def head_sent(self) -> bool:
        return self.framing != UNDECIDED

    @property
    def close_delimited(self) -> bool:
        """True if the body ends with the connection."""
        return self.framing == UNTIL_CLOSE

    # Request ----------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next piece of the request. The first call sends `100 Continue` to a client that waits for it.

        Raises:
            ReadTimeout, TooSlow: the client sends its body too slowly; the connection closes after the answer.
        """
        while True:
            if self.chunks and not self.gone:
                chunks = self.chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                self.chunks = []
                self.buffered = 0
                if self.body_patience is not None:
                    self.body_patience.came(self.protocol.loop.time(), len(body))
                self.protocol.regulate_reading()
                return self._piece(body)
            if self.gone or self.done:
                return {"type": "http.disconnect"}
            if self.body_patience is not None:
                if self.body_patience.late is not None:
                    raise self.body_patience.late
                self.body_patience.came(self.protocol.loop.time(), 0)
            if self.complete and not self.ended:
                return self._piece(b"")
            if self.expects and not self.complete and self.framing == UNDECIDED:
                self.expects = False
                self.protocol.transport.write(_CONTINUE)
            if not self.complete:
                if self.body_patience is None:
                    self.body_patience = BodyPatience(self.protocol.limits)
                self.protocol.ring_at(self.body_patience.wait(self.protocol.loop.time()))
            if self.waiter is None or self.waiter.done():
                self.waiter = self.protocol.loop.create_future()
                await self.waiter
            else:
                # Another task awaits it (a framework that watches for the disconnect): do not cancel it with this one.
                await asyncio.wait((self.waiter,))

    def _piece(self, body: bytes) -> Message:
        if not self.complete:
            return {"type": "http.request", "body": body, "more_body": True}
        self.ended = True
        message: Message = {"type": "http.request", "body": body, "more_body": False}
        if self.trailers:
            message["trailers"] = self.trailers
        return message

    def late(self) -> None:
        """Record that the application waited too long, unless received data is only not read yet."""
        if self.body_patience is not None and not self.chunks and not self.complete:
            self.body_patience.expire()
            self.protocol.connections.count("body_too_slow")
            self.keep_alive = False
            self.wake()

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # Response ---------------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send an ASGI message. Waits while the transport is above its high-water mark.

        An empty body piece with `more_body` sends a head that still waits for its first body bytes.

        Raises:
            ConnectionResetError: the client has gone.
            UnframeableResponse: the message cannot be sent.
            RuntimeError: the message is out of order.
        """
        if self.gone:
            raise ConnectionResetError("the client has gone")
        kind = message["type"]
        if kind == "http.response.body":
            if self.done or not self.status:
                raise RuntimeError("a response body is out of turn")
            body: bytes = message.get("body", b"")
            more: bool = message.get("more_body", False)
            if self.framing == UNDECIDED:
                self._send_body(self._head(len(body), more), body, more)
            elif body or not more:
                self._send_body(b"", body, more)
            if self.protocol.write_paused and not self.done:
                await self.protocol.writable()
        elif kind == "http.response.start":
            if self.status:
                raise RuntimeError("the response has already started")
            status: int = message["status"]
            if status < 200:
                raise RuntimeError(f"{status} is not a final status; a connection upgrade is not supported here")
            self.fields, self.remaining, close = field_lines(status, message.get("headers", ()))
            self.status = status
            if message.get("trailers"):
                self.will_trail = True
            if close:
                self.keep_alive = False
            connections = self.protocol.connections
            self.held_at = connections.tick
            connections.held.add(self)
            if not connections.ticking:
                connections.start_ticking(self.protocol.loop)
        elif kind == "http.response.trailers":
            if self.done or not self.will_trail or self.framing == UNDECIDED:
                raise RuntimeError("response trailers are out of turn")
            self.fields.extend(field_lines(200, message.get("headers", ()))[0][1:])
            if not message.get("more_trailers", False):
                if self.framing == CHUNKED:
                    pieces = [b"0", *self.fields, b"\r\n\r\n"]
                    self.protocol.transport.write(checked(b"".join(pieces), len(self.fields) // 2 + 2))
                self._finish()
        else:
            raise RuntimeError(f"{kind!r} is not a message of an HTTP response")

    def answer_whole(self, status: int, headers: Sequence[RawHeader], body: bytes) -> bool:
        """Send a small, complete answer in a single write, with the result that two messages to `send` would have.

        Returns:
            False, and nothing is sent, unless this is the simple case: the declared length is the body's, and status,
            client and connection need no special treatment.

        Raises:
            UnframeableResponse: the answer cannot be sent.
        """
        protocol = self.protocol
        if (
            self.status
            or self.gone
            or self.expects
            or self.head_only
            or not self.http11
            or not self.keep_alive
            or protocol.must_close
            or status < 200
            or status == 204
            or status == 304
            or len(body) > _JOIN_BYTES
        ):
            return False
        head = plain_head(status, headers, len(body))
        if head is None:
            return False
        self.status = status
        self.framing = LENGTH
        protocol.transport.write(head + body)
        self._finish()
        return True

    def _head(self, first: int, more: bool) -> bytes:
        """The response head, with the framing that suits the body as far as it is known."""
        protocol = self.protocol
        protocol.connections.held.discard(self)
        fields, self.fields = self.fields, []
        lines = len(fields) // 2 + 2
        status = self.status
        if self.head_only or status == 304 or status == 204:
            framing = NO_BODY
        elif self.remaining >= 0:
            framing = LENGTH
        elif not more and not self.will_trail:
            framing = LENGTH
            self.remaining = first
            fields.append(b"\r\ncontent-length: %d" % first)
            lines += 1
        elif self.http11:
            framing = CHUNKED
            fields.append(b"\r\ntransfer-encoding: chunked")
            lines += 1
        else:
            framing = UNTIL_CLOSE
            self.keep_alive = False
        if not self.keep_alive or self.expects or protocol.must_close:
            # A client that still waits for `100 Continue` may send its body or not: the next bytes would be ambiguous.
            self.keep_alive = False
            fields.append(b"\r\nconnection: close")
            lines += 1
        elif not self.http11:
            fields.append(b"\r\nconnection: keep-alive")
            lines += 1
        fields.append(b"\r\n\r\n")
        head = checked(b"".join(fields), lines)
        self.framing = framing
        return head

    def _send_body(self, head: bytes, body: bytes, more: bool) -> None:
        size = len(body)
        framing = self.framing
        if framing == LENGTH:
            self.remaining = remaining = self.remaining - size
            if remaining and (remaining < 0 or not more):
                self.abort()
                raise RuntimeError("the response body differs from its declared length")
            if size <= _JOIN_BYTES:
                if head or body:
                    self.protocol.transport.write(head + body)
            else:
                write_pieces(self.protocol.transport, (head, body) if head else (body,))
        elif framing == CHUNKED:
            pieces = [head]
            if size:
                pieces += (b"%x\r\n" % size, body, b"\r\n")
            if not more and not self.will_trail:
                pieces.append(b"0\r\n\r\n")
            if size > _JOIN_BYTES:
                write_pieces(self.protocol.transport, pieces)
            else:
                self.protocol.transport.write(b"".join(pieces))
        elif framing == NO_BODY:
            if head:
                self.protocol.transport.write(head)
        else:
            self.protocol.transport.write(head + body)
        if not more and not (self.will_trail and framing != NO_BODY):
            self._finish()

    def _finish(self) -> None:
        self.done = True
        if self.chunks:
            self.chunks = []
            self.buffered = 0
        if self.waiter is not None:
            self.wake()
        self.protocol.response_done(self)

    def flush_head(self) -> None:
        """Send the head without waiting any longer for its first body bytes."""
        if self.framing == UNDECIDED and not self.done and not self.gone:
            try:
                self._send_body(self._head(0, True), b"", True)
            except UnframeableResponse as error:
                connections = self.protocol.connections
                connections.log.error("application.failed", listener=connections.listener, exc_info=error)
                self.abort()
                if self.task is not None:
                    self.task.cancel()

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Send an informational head at once. Ignored for an HTTP/1.0 client, and after the final head."""
        if not 100 <= status < 200 or status == 101:
            raise ValueError(f"{status} is not an informational status")
        if self.gone:
            raise ConnectionResetError("the client has gone")
        if not self.http11 or self.framing != UNDECIDED or self.done:
            return
        if status == 100:
            self.expects = False
        self.protocol.transport.write(informational_head(status, headers))
        if self.protocol.write_paused:
            await self.protocol.writable()

    def switch(self, headers: list[RawHeader]) -> RawStream:
        """Answer 101; from then on the connection carries raw bytes.

        Raises:
            ConnectionResetError: the client has gone.
            UnframeableResponse: the head cannot be sent.
            RuntimeError: the client requested no upgrade, or the response has already started.
        """
        if self.gone:
            raise ConnectionResetError("the client has gone")
        if self.raw is None or self.status or self.done:
            raise RuntimeError("the client requested no upgrade, or the response has already started")
        head = switching_head(headers)
        self.status = 101
        self.framing = NO_BODY
        self.protocol.start_raw(self.raw, head)
        return self.raw

    def abort(self) -> None:
        """End the connection without completing the response, so that the client notices the truncation."""
        if not self.done:
            self.done = True
            self.protocol.connections.held.discard(self)
            self.wake()
            self.protocol.cut(self)
