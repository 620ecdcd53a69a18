"""One request on a connection of ours, as the application sees it: ASGI's `receive` and `send`, and more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from netbird_proxy.exchange import Message
from netbird_proxy.headers import RawHeader
from netbird_proxy.listening.framing import (
    UNKNOWN_LENGTH,
    UnframeableResponse,
    checked,
    field_lines,
    informational_head,
)

if TYPE_CHECKING:
    from netbird_proxy.listening.http1 import Http1Protocol

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BYTES = 16384
# Above it, copying a body behind its head costs more than a second entry in the transport's queue.

_NO_PIECES: list[bytes] = []  # replaced before the first piece, never changed in place


class ServedRequest:
    """Implements `DownstreamConnection`. The protocol fills the request half; the application's messages the other.

    Attributes:
        complete: the request has arrived to its last byte.
        head_sent: the response head is on the wire: from here a failure can only be shown by truncation.
        done: the response is on the wire to its last byte, or given up.
        close_delimited: only the connection's end tells the client where the body ends.
    """

    __slots__ = (
        "bodyless", "buffered", "chunked", "chunks", "close_delimited", "complete", "done", "ended", "expects",
        "fields", "gone", "has_body", "head_only", "head_sent", "held_at", "http11", "keep_alive", "length",
        "protocol", "remaining", "status", "task", "trailers", "waiter", "will_trail",
    )  # fmt: skip

    def __init__(
        self, protocol: Http1Protocol, head_only: bool, http11: bool, keep_alive: bool, has_body: bool, expects: bool
    ) -> None:
        self.protocol = protocol
        self.head_only = head_only
        self.http11 = http11
        self.keep_alive = keep_alive
        self.has_body = has_body
        self.expects = expects
        self.task: asyncio.Task[None] | None = None
        self.gone = self.complete = self.ended = self.will_trail = False
        self.head_sent = self.bodyless = self.chunked = self.close_delimited = self.done = False
        self.buffered = self.status = self.held_at = 0
        self.length = self.remaining = UNKNOWN_LENGTH
        self.chunks: list[bytes] = _NO_PIECES
        self.fields: list[bytes] = _NO_PIECES
        self.trailers: list[RawHeader] | None = None
        self.waiter: asyncio.Future[None] | None = None

    # Request ----------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next piece of the request. The first call lets a waiting client send its body."""
        while True:
            if self.chunks and not self.gone:
                chunks = self.chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                self.chunks = []
                self.buffered = 0
                self.protocol.regulate_reading()
                return self._piece(body)
            if self.gone or self.done:
                return {"type": "http.disconnect"}
            if self.complete and not self.ended:
                return self._piece(b"")
            if self.expects and not self.complete and not self.head_sent:
                self.expects = False
                self.protocol.write(_CONTINUE)
            if self.waiter is None or self.waiter.done():
                self.waiter = self.protocol.loop.create_future()
                await self.waiter
            else:
                # Somebody else awaits it (a framework that watches for the disconnect): do not cancel it under them.
                await asyncio.wait((self.waiter,))

    def _piece(self, body: bytes) -> Message:
        if not self.complete:
            return {"type": "http.request", "body": body, "more_body": True}
        self.ended = True
        message: Message = {"type": "http.request", "body": body, "more_body": False}
        if self.trailers:
            message["trailers"] = self.trailers
        return message

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    # Response ---------------------------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """One ASGI message. Waits while the transport is above its high-water mark.

        An empty body piece with `more_body` sends a head that waits for its first bytes.

        Raises:
            ConnectionResetError: the client has gone.
            UnframeableResponse: the message cannot be put on the wire.
            RuntimeError: it is not this message's turn.
        """
        if self.gone:
            raise ConnectionResetError("the client has gone")
        kind = message["type"]
        if kind == "http.response.body":
            if self.done or not self.status:
                raise RuntimeError("a response body is out of turn")
            body: bytes = message.get("body", b"")
            more: bool = message.get("more_body", False)
            if self.head_sent:
                if body or not more:
                    self._send_body(None, body, more)
            else:
                self._send_body(self._head(len(body), more), body, more)
            if self.protocol.write_paused and not self.done:
                await self.protocol.writable()
        elif kind == "http.response.start":
            if self.status:
                raise RuntimeError("the response has already started")
            status: int = message["status"]
            if status < 200:
                raise RuntimeError(f"{status} is no final status; a connection upgrade is not supported here")
            self.fields, self.length, close = field_lines(status, message.get("headers", ()))
            self.status = status
            self.will_trail = message.get("trailers", False)
            if close:
                self.keep_alive = False
            self.protocol.connections.hold(self, self.protocol.loop)
        elif kind == "http.response.trailers":
            if self.done or not self.will_trail or not self.head_sent:
                raise RuntimeError("response trailers are out of turn")
            self.fields.extend(field_lines(200, message.get("headers", ()))[0][1:])
            if not message.get("more_trailers", False):
                if self.chunked:
                    pieces = [b"0", *self.fields, b"\r\n\r\n"]
                    self.protocol.write(checked(b"".join(pieces), len(self.fields) // 2 + 2))
                self._finish()
        else:
            raise RuntimeError(f"{kind!r} is no message of an HTTP response")

    def _head(self, first: int, more: bool) -> bytes:
        """The response head, with the framing that fits what is known of the body by now."""
        self.protocol.connections.release(self)
        fields = self.fields
        lines = len(fields) // 2 + 2
        self.bodyless = self.head_only or self.status in (204, 304)
        if self.bodyless:
            pass
        elif self.length >= 0:
            self.remaining = self.length
        elif not more and not self.will_trail:
            self.remaining = first
            fields.append(b"\r\ncontent-length: %d" % first)
            lines += 1
        elif self.http11:
            self.chunked = True
            fields.append(b"\r\ntransfer-encoding: chunked")
            lines += 1
        else:
            self.close_delimited = True
            self.keep_alive = False
        if not self.keep_alive or self.expects or self.protocol.must_close:
            # A client that still waits for `100 Continue` may send the body or not: what follows cannot be told apart.
            self.keep_alive = False
            fields.append(b"\r\nconnection: close")
            lines += 1
        elif not self.http11:
            fields.append(b"\r\nconnection: keep-alive")
            lines += 1
        fields.append(b"\r\n\r\n")
        head = checked(b"".join(fields), lines)
        self.fields = []
        self.head_sent = True
        return head

    def _send_body(self, head: bytes | None, body: bytes, more: bool) -> None:
        size = len(body)
        protocol = self.protocol
        if self.chunked:
            pieces = [head] if head is not None else []
            if size:
                pieces += (b"%x\r\n" % size, body, b"\r\n")
            if not more and not self.will_trail:
                pieces.append(b"0\r\n\r\n")
            if pieces:
                if size > _JOIN_BYTES:
                    protocol.writelines(pieces)
                else:
                    protocol.write(b"".join(pieces))
        elif self.bodyless:
            if head is not None:
                protocol.write(head)
        else:
            if not self.close_delimited:
                self.remaining -= size
                if self.remaining < 0 or (self.remaining and not more):
                    self.abort()
                    raise RuntimeError("the response body differs from its stated length")
            if head is None:
                if size:
                    protocol.write(body)
            elif size > _JOIN_BYTES:
                protocol.writelines((head, body))
            else:
                protocol.write(head + body)
        if not more and not (self.will_trail and not self.bodyless):
            self._finish()

    def _finish(self) -> None:
        self.done = True
        self.chunks = []
        self.buffered = 0
        self.wake()
        self.protocol.response_done(self)

    def flush_head(self) -> None:
        """Send a head that has waited long enough for its body."""
        if not self.head_sent and not self.done and not self.gone:
            try:
                self._send_body(self._head(0, True), b"", True)
            except UnframeableResponse:
                self.abort()

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Send an informational head now. Nothing for a 1.0 client, which knows none, or once the final head is out."""
        if not 100 <= status < 200 or status == 101:
            raise ValueError(f"{status} is no informational status")
        if self.gone:
            raise ConnectionResetError("the client has gone")
        if not self.http11 or self.head_sent or self.done:
            return
        if status == 100:
            self.expects = False
        self.protocol.write(informational_head(status, headers))
        if self.protocol.write_paused:
            await self.protocol.writable()

    def abort(self) -> None:
        """End the connection without completing the response, so that the client sees that it is cut off."""
        if not self.done:
            self.done = True
            self.protocol.connections.release(self)
            self.protocol.cut(self)
