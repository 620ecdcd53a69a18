"""Binary messages over one WebSocket connection, sans-IO and in batches: many frames a read, many frames a write.

The `websockets` library does the handshake, control frames, fragments and all errors. Whole binary frames, which are
nearly all of a relay's traffic, take a short path beside it: the library's own takes four times as long for each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the library's C extension
    from websockets.utils import apply_mask

MAX_HEAD_BYTES: Final = 16_384
"""Maximum size of the head of a request or response of the opening handshake."""

_WHOLE_BINARY: Final = 0x82
"""First byte of a frame that is a whole binary message."""
_MASK_BYTES: Final = 4

# The library logs each connection at INFO; its caller logs what matters.
_log = logging.getLogger(f"{__name__}.library")
_log.setLevel(logging.ERROR)


class WebSocket:
    """One end of a connection. Bytes and messages go in and out; the caller owns the socket, the clock and timeouts.

    `opened` becomes true with the end of the handshake. `ended` is "" until the connection failed or was closed by
    either end, then the reason: the caller sends what `to_send` still returns, and closes the socket.
    """

    def __init__(self, protocol: ClientProtocol | ServerProtocol, max_message_bytes: int) -> None:
        self._protocol = protocol
        self._is_server = isinstance(protocol, ServerProtocol)
        self._max = max_message_bytes
        self._buffer = b""
        self._fragments: bytearray | None = None
        self.opened = False
        self.ended = ""

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes from the socket; return the messages that they complete, in order."""
        if self.ended:
            return []
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        messages: list[bytes] = []
        if not self.opened:
            data = self._open(data)
            if not self.opened:
                return messages
        at, end = 0, len(data)
        masked, largest, protocol = self._is_server, self._max, self._protocol
        while at + 2 <= end:
            second = data[at + 1]
            length = second & 0x7F
            start = at + 2
            if length == 126:
                if start + 2 > end:
                    break
                length = data[start] << 8 | data[start + 1]
                start += 2
            elif length == 127:
                if start + 8 > end:
                    break
                length = int.from_bytes(data[start : start + 8], "big")
                start += 8
            if length > largest or (second >= 0x80) is not masked:
                self._by_library(data[at:], messages)  # which fails the connection, and sends the reason
                self.close(CloseCode.PROTOCOL_ERROR)
                return messages
            if masked:
                start += _MASK_BYTES
            stop = start + length
            if stop > end:
                break
            if data[at] == _WHOLE_BINARY and protocol.current_size is None:
                message = data[start:stop]
                messages.append(apply_mask(message, data[start - _MASK_BYTES : start]) if masked else message)
            else:
                self._by_library(data[at:stop], messages)
                if self.ended:
                    return messages
            at = stop
        self._buffer = data[at:]
        return messages

    def frames(self, messages: Iterable[bytes]) -> bytes:
        """Whole binary frames of the messages, for one write. The caller ensures that the connection is open."""
        parts: list[bytes] = []
        if self._is_server:
            for message in messages:
                parts += frame_head(len(message)), message
            return b"".join(parts)
        messages = list(messages)
        masks = os.urandom(_MASK_BYTES * len(messages))  # one system call, not one each
        at = 0
        for message in messages:
            mask = masks[at : at + _MASK_BYTES]
            parts += frame_head(len(message), masked=True), mask, apply_mask(message, mask)
            at += _MASK_BYTES
        return b"".join(parts)

    def to_send(self) -> bytes:
        """The handshake, answers to pings and closes. Messages are not among them: `frames` returns those."""
        return b"".join(self._protocol.data_to_send())

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close from this end. Idempotent. The caller sends `to_send()` and closes the socket."""
        if self.ended:
            return
        self.ended = f"closed here: {reason or code.name.lower().replace('_', ' ')}"
        if self._protocol.state is OPEN:
            self._protocol.fail(code, reason)

    def _open(self, data: bytes) -> bytes:
        """Do the handshake as soon as its head is whole; return what follows the head."""
        head, end, rest = data.partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            self.ended = "the head of the handshake is too long"
            return b""
        if not end:
            self._buffer = data
            return b""
        self._protocol.receive_data(head + end)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._answer(event)
        failure = self._protocol.handshake_exc or self._protocol.parser_exc
        if failure is not None:
            self.ended = f"the handshake failed: {failure}"
        elif not self.ended:
            self.opened = self._protocol.state is OPEN
            if not self.opened:
                first_line = head.partition(b"\r\n")[0][:80].decode("ascii", "replace")
                self.ended = f"the handshake failed: {first_line!r}"
        return rest

    def _answer(self, request: Request) -> None:
        raise NotImplementedError

    def _by_library(self, data: bytes, messages: list[bytes]) -> None:
        """Give one whole frame, or the begin of a wrong one, to the library."""
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event, messages)
        if protocol.state is not OPEN and not self.ended:
            failure = protocol.parser_exc
            self.ended = "the other end closed the connection" if failure is None else f"bad frame: {failure}"

    def _frame(self, frame: Frame, messages: list[bytes]) -> None:
        match frame.opcode:
            case Opcode.TEXT:
                self.close(CloseCode.UNSUPPORTED_DATA, "binary messages only")
            case Opcode.BINARY if frame.fin:
                messages.append(bytes(frame.data))
            case Opcode.BINARY:
                self._fragments = bytearray(frame.data)
            case Opcode.CONT if self._fragments is not None:
                self._fragments += frame.data  # the library bounds the sum
                if frame.fin:
                    messages.append(bytes(self._fragments))
                    self._fragments = None


class ClientWebSocket(WebSocket):
    """The end that dials. `to_send` returns the request at once.

    Args:
        host, port, secure, path: of the URL; they make the request's Host and target.
    """

    def __init__(self, host: str, port: int, path: str, *, secure: bool, max_message_bytes: int) -> None:
        uri = WebSocketURI(secure, host, port, path, "")
        protocol = ClientProtocol(uri, max_size=max_message_bytes, logger=_log)
        protocol.send_request(protocol.connect())
        super().__init__(protocol, max_message_bytes)


class ServerWebSocket(WebSocket):
    """The end that is dialed.

    Args:
        judge: called with the request; returns the response that refuses it, or None to accept.
    """

    def __init__(self, max_message_bytes: int, judge: Callable[[Request], Response | None]) -> None:
        self._server = ServerProtocol(max_size=max_message_bytes, logger=_log)
        self._judge = judge
        super().__init__(self._server, max_message_bytes)

    def _answer(self, request: Request) -> None:
        refusal = self._judge(request)
        self._server.send_response(refusal if refusal is not None else self._server.accept(request))
        if refusal is not None:
            self.ended = f"refused with {refusal.status_code}"


def refusal(status: int, reason: str, text: str) -> Response:
    """A plain-text response that ends the connection."""
    body = text.encode()
    headers = Headers(
        {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
    )
    return Response(status, reason, headers, body)


@lru_cache(maxsize=16_384)
def frame_head(size: int, *, masked: bool = False) -> bytes:
    """The head of a whole binary frame, up to its mask."""
    mask_bit = 0x80 if masked else 0
    if size < 126:
        return bytes((_WHOLE_BINARY, mask_bit | size))
    if size < 65_536:
        return bytes((_WHOLE_BINARY, mask_bit | 126)) + size.to_bytes(2, "big")
    return bytes((_WHOLE_BINARY, mask_bit | 127)) + size.to_bytes(8, "big")
