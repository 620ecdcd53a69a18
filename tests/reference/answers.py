"""The parser of an upstream's response before the engine, with which the engine is compared.

llhttp (through httptools) checks the grammar strictly, and this module the rest. llhttp does not know the request's
method, so it cannot know that an answer to HEAD has no body. It accepts `RTSP/1.0`, `HTTP/2.0` and status 099. And it
reads a body with a transfer coding other than `chunked` until the close, so that the proxy would drop a coding that it
did not decode. Each answer gets a new parser, which costs half a microsecond: a parser cannot be reused after an answer
to HEAD, or after a body that bypassed it.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from netbird_proxy.api.errors import ProtocolViolation
from netbird_proxy.api.headers import NameCache, RawHeader

_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
# Name → the name in lower case, and True if it frames the body.
_NAMES: NameCache[tuple[bytes, bool]] = NameCache(lambda name: (name.lower(), name.lower() in _FRAMING))
_VERSION_BYTES = 9  # b"HTTP/1.1 "

# Modes of reading bytes: by the parser (head, chunked body), by counting, until the close, or not at all.
_PARSED, _COUNTED, _RAW, _ENDED = range(4)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Limits on an upstream's heads (including informational ones) and trailers; beyond them ProtocolViolation.

    Attributes:
        bytes: maximum size of all heads of an answer, of its trailers, and of a chunk's extensions.
        lines: maximum number of fields in a head or in the trailers.
    """

    bytes: int = 65536
    lines: int = 256


class _Stop(Exception):
    """Stops the parser at the end of the answer: the bytes after it belong to no request."""


class AnswerParser:
    """A response. `feed` takes bytes as they arrive; the attributes hold the parsed state.

    Attributes:
        status: 0 until the final head is complete.
        interim: informational heads that were not passed on yet.
        pieces: pieces of the body that were not read yet, as they arrived; `buffered` is their total size.
        head_complete, complete: true once the final head, or the whole answer, has arrived.
        switched: the answer is a requested 101; its body is the raw stream that follows, until the close.
        keep_alive: the upstream accepts another request after this answer.
        excess: bytes arrived after the end, so the connection must not carry another exchange.
        fed: number of bytes taken, including heads.
    """

    # Most answers change only a few of these, so class attributes save the time to set them.
    status = 0
    reason = b""
    buffered = 0
    fed = 0
    head_complete = False
    complete = False
    switched = False
    keep_alive = False
    excess = False
    _mode = _PARSED
    _remaining = -1
    _until_close = False
    _quiet = 0
    _prefix = b""

    def __init__(self, method: bytes, *, limits: HeadLimits, upgrade: bool = False) -> None:
        self.headers: list[RawHeader] = []
        self.trailers: list[RawHeader] = []
        self.interim: list[tuple[int, list[RawHeader]]] = []
        self.pieces: list[bytes] = []
        self._method = method
        self._upgrade = upgrade
        self._limits = limits
        self._fields = self.headers
        self._framing: list[RawHeader] = []
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises ProtocolViolation; then nothing more may be fed."""
        size = len(data)
        self.fed += size
        mode = self._mode
        if mode == _PARSED:
            self._parse(data, size)
        elif mode == _COUNTED:
            if size > self._remaining:
                data = data[: self._remaining]
                size = self._remaining
                self.excess = True
            self.pieces.append(data)
            self.buffered += size
            self._remaining -= size
            if not self._remaining:
                self._end()
        elif mode == _RAW:
            self.pieces.append(data)
            self.buffered += size
        else:
            self.excess = True

    def feed_eof(self) -> bool:
        """The upstream has ended its side. Returns True if the answer is complete."""
        if self._mode == _RAW:
            self._end()
        return self.complete

    def _parse(self, data: bytes, size: int) -> None:
        head_was_complete = self.head_complete
        if not head_was_complete and len(self._prefix) < _VERSION_BYTES:
            self._prefix += data[: _VERSION_BYTES - len(self._prefix)]
        before = self.buffered
        limits = self._limits
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            rest = data[stop.args[0] :]
            if rest:
                self.pieces.append(rest)
                self.buffered += len(rest)
        except httptools.HttpParserError as error:
            if not self.complete:
                self._parser = None
                cause = error.__context__
                raise (
                    cause if isinstance(cause, ProtocolViolation) else ProtocolViolation(f"invalid answer: {error}")
                ) from None
            self.excess = True
        if len(self._fields) > limits.lines:
            raise ProtocolViolation(f"more than {limits.lines} header lines")
        if not head_was_complete:
            self._quiet += size
            if self._quiet > limits.bytes:
                self._weigh_head()
            if not self.head_complete:
                return
            self._quiet = 0
            if self.complete:
                self._mode = _ENDED
            elif self._remaining >= 0:
                self._remaining -= self.buffered
                self._mode = _COUNTED
            elif self._until_close:
                self._mode = _RAW
            else:
                return
            self._parser = None  # it refers to this object: a reference cycle
        elif self.complete:
            self._mode = _ENDED
            self._parser = None
        elif self.buffered == before:
            self._quiet += size
            if self._quiet > limits.bytes:
                raise ProtocolViolation(f"trailers or chunk extensions over {limits.bytes} bytes")
        else:
            self._quiet = 0

    def _weigh_head(self) -> None:
        weight = sum(len(name) + len(value) + 4 for _, head in self.interim for name, value in head)
        weight += sum(len(name) + len(value) + 4 for name, value in self.headers)
        # The parser may still buffer a long line of an unfinished head, so for that head every received byte counts.
        if weight > self._limits.bytes or not self.head_complete:
            raise ProtocolViolation(f"head over {self._limits.bytes} bytes")

    def _end(self) -> None:
        self.complete = True
        self._mode = _ENDED

    # Callbacks of the parser; an exception in them stops it.

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Stop

    def on_status(self, piece: bytes) -> None:
        self.reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        lower, frames = _NAMES[name]
        pair = (lower, value)
        self._fields.append(pair)
        if frames:
            self._framing.append(pair)

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        status: int = parser.get_status_code()
        if status < 100:
            raise ProtocolViolation(f"status {status:03}")
        prefix = self._prefix
        if prefix == b"HTTP/1.1 ":
            modern = True
        elif prefix == b"HTTP/1.0 ":
            modern = False
        else:
            raise ProtocolViolation(f"not an HTTP/1.1 answer: it starts with {prefix!r}")
        length = -1
        chunked = close = keep = False
        for name, value in self._framing:
            if name == b"content-length":
                # The parser has refused duplicates, signs and overflow.
                length = int(value)
            elif name == b"transfer-encoding":
                if chunked or value.strip(b" \t").lower() != b"chunked":
                    raise ProtocolViolation("a transfer coding other than chunked")
                chunked = True
            elif value == b"keep-alive":
                keep = True
            else:
                value = value.lower()
                close = close or b"close" in value
                keep = keep or b"keep-alive" in value
        if len(self.headers) > self._limits.lines:
            raise ProtocolViolation(f"more than {self._limits.lines} header lines")
        if status < 200:
            if length >= 0 or chunked:
                raise ProtocolViolation(f"a body announced by status {status}")
            if status != 101:
                self.interim.append((status, self.headers))
                return
            self._switch(parser)
            return
        if self.reason != b"OK" and not self.reason.decode("latin-1").isprintable():
            self.reason = b""
        self.status = status
        self.head_complete = True
        self.keep_alive = not close and (modern or (keep and not chunked))
        self._fields = self.trailers
        if status == 204 or status == 304 or self._method == b"HEAD":
            if status == 204 and length >= 0:
                # A 204 must not have this field: a client that frames by it would wait for a body.
                self.headers = [pair for pair in self.headers if pair[0] != b"content-length"]
            self.complete = True
        elif length >= 0:
            self._remaining = length
        elif not chunked:
            self._until_close = True
            self.keep_alive = False

    def _switch(self, parser: httptools.HttpResponseParser) -> None:
        if not self._upgrade:
            raise ProtocolViolation("101 to a request without an upgrade")
        if not parser.should_upgrade():
            raise ProtocolViolation("101 without Upgrade and Connection: upgrade")
        self.status = 101
        self.head_complete = True
        self.switched = True
        self._until_close = True

    def on_body(self, piece: bytes) -> None:
        if self.complete:
            self.excess = True
            return
        self.pieces.append(piece)
        self.buffered += len(piece)

    def on_message_complete(self) -> None:
        if self.head_complete:
            if not self.switched:
                self.complete = True
        else:  # an informational head; the next head starts from empty
            self.headers = self._fields = []
            self._framing = []
            self.reason = b""
