"""Our own HTTP/1.1 server protocol: bytes from any `asyncio.Transport`, parsed by httptools, served as ASGI 3.

A connection serves one request at a time, each in its own task. A head that the parser or `head.py` refuses never
reaches the application. Limits are checked in the parser's callbacks, so that nothing is parsed twice.
"""

# This file is long because the parser's callbacks, the timers and the ways in which a connection ends read and write
# the same few flags, and each rule about the flags depends on the others. Separate modules hold the independent parts:
# `head.py` checks heads, `framing.py` writes them, `request.py` is a request, `connections.py` all connections.

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import httptools

from netbird_host.http_fields import retry_after
from netbird_host.tasks import start_owned
from netbird_proxy.api.errors import DownstreamError
from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, Scope
from netbird_proxy.http.framing import STATUS_LINES
from netbird_proxy.http.head import (
    HOST,
    KNOWN,
    VALID_HOSTS,
    FramingField,
    HeadRefused,
    check_framing_fields,
    judge_target,
    learn,
)
from netbird_proxy.listening.connections import Capacity, Connections, Place
from netbird_proxy.listening.pace import WriteProgress
from netbird_proxy.listening.raw import RawStream
from netbird_proxy.listening.request import ServedRequest

if TYPE_CHECKING:
    from netbird_proxy.api.headers import RawHeader
    from netbird_proxy.api.model import Origin

_VERSIONS = ("1.1", "1.0")
_ASGI = {"version": "3.0", "spec_version": "2.5"}
_NOTHING: dict[str, Any] = {}
_SENTENCES = {
    400: (b"bad_request", b"The request is malformed."),
    408: (b"read_timeout", b"The request did not arrive in time."),
    417: (b"expectation_failed", b"The expectation cannot be met."),
    431: (b"head_too_large", b"The request head is too large."),
    500: (b"internal_error", b"The request could not be answered."),
    503: (b"too_many_connections", b"There are too many connections."),
    505: (b"version_unsupported", b"The protocol version is not supported."),
}


class Http1Protocol(asyncio.Protocol):
    """An accepted connection.

    Its transport may be a socket's, a tunnel's, or TLS over either: any `asyncio.Transport` works.
    """

    __slots__ = (
        "_completed", "_deadline", "_discarded", "_discarding", "_drained", "_eof", "_fields", "_framing_fields",
        "_idle", "_lingering", "_parser", "_patience", "_place", "_queue", "_raw", "_reading", "_reading_paused",
        "_refusal", "_scope", "_segment", "_silent", "_timer", "_timer_at", "_tls", "_unfinished", "_url",
        "_write_progress", "app", "connections", "current", "limits", "loop", "must_close", "origin", "transport",
        "write_paused",
    )  # fmt: skip

    def __init__(
        self, connections: Connections, loop: asyncio.AbstractEventLoop | None = None, *, place: Place | None = None
    ) -> None:
        """Args:
        place: the object under which the connection is already counted; without it `connection_made` counts it.
        """
        # The same for all connections of the listener.
        self.loop = loop or asyncio.get_running_loop()
        self.connections = connections
        self.app = connections.app
        self.limits = connections.limits
        # State of the connection.
        self._place = place
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.origin: Origin = cast("Origin", None)
        self._scope: Scope = {}  # template of each request's scope
        self.must_close = False
        self.write_paused = False
        self._parser: Any = httptools.HttpRequestParser(self)
        self._drained: asyncio.Future[None] | None = None
        self._patience = 0.0  # seconds that the client had since the last check of its progress
        self._write_progress: WriteProgress | None = None  # while written data waits for the client
        self._reading_paused = False
        self._eof = False
        self._tls = False
        self._idle = False  # between requests, before the first byte of the next one
        self._discarding = False  # received bytes are dropped
        self._discarded = 0
        self._lingering = False  # our side has ended; the client's last bytes are dropped
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0  # 0: no deadline
        self._refusal: HeadRefused | None = None
        # State of requests: the one that is parsed, the one that is answered, and those that wait.
        self._url = b""
        self._fields: list[RawHeader] = []
        self._framing_fields: list[FramingField] = []
        self._segment = 0  # bytes in the piece being parsed
        self._unfinished = 0  # bytes of earlier pieces that belong to the head being parsed
        self._completed = False  # this piece completed a head
        self._silent = 0  # bytes of the body's framing since its last body byte
        self._raw: RawStream | None = None  # receives the bytes behind a request for an upgrade
        self._reading: ServedRequest | None = None
        self.current: ServedRequest | None = None
        self._queue: deque[tuple[ServedRequest, Scope] | HeadRefused] = deque()

    # Connection -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        connections = self.connections
        self.origin = origin = connections.issue(transport)
        self._tls = transport.get_extra_info("sslcontext") is not None
        self._scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "",
            "server": (origin.local.host, origin.local.port) if origin.local.host else None,
            "client": (origin.peer.host, origin.peer.port) if origin.peer.host else None,
            "scheme": "https" if self._tls or origin.behind_tls_proxy else "http",
            "method": "",
            "root_path": "",
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "headers": (),
            "state": None,
            "extensions": None,
        }
        place, self._place = self._place, None
        if place is None:
            capacity = connections.enter(self, transport.get_extra_info("peername"))
        else:
            capacity = connections.take_over(place, self)
        if connections.stopping:
            self._close()
        elif capacity is not Capacity.YES:
            self._turn_away(capacity)
        else:
            self._arm(self.limits.head_timeout)

    def _turn_away(self, capacity: Capacity) -> None:
        """Refuse a connection over the limit: with a 503, or without an answer where even that would cost too much."""
        self._discarding = True
        if capacity is Capacity.CROWDED:
            self.transport.abort()
        else:
            self.transport.write(_refusal_response(503))
            self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._discarding = True
        self._queue.clear()
        self._reading = None
        self._parser = None  # it holds bound methods of this object, a reference cycle
        current, self.current = self.current, None
        if current is not None:
            if exc is None and current.raw is not None and current.raw.switched:
                current.raw.lost()
            else:
                self._leave(current)
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.origin is not None:
            self.connections.origins.retire(self.origin)
        self.connections.closed(self)

    def eof_received(self) -> bool:
        """The client has ended its sending side. A request that arrived completely is still answered."""
        if self._raw is not None and self._raw.switched and not self._lingering:
            if self._tls:  # TLS has no half-close: the transport closes
                self._raw.lost()
                return False
            self._raw.feed_eof()
            return True
        self._eof = True
        self._discarding = True
        if self._lingering or self.current is None:
            return False
        if self._tls:
            return False  # TLS has no half-close: the transport closes, and connection_lost does the rest
        reading, self._reading = self._reading, None
        if reading is self.current:
            # The request ends in the middle of its body: no client waits for an answer, and none may look complete.
            self._leave(self.current)
            self.transport.abort()
            return False
        if reading is not None:
            self._queue.pop()
        self._write_progress = WriteProgress(self.transport)
        self._arm(self.limits.half_close_timeout)
        return True

    def stop(self) -> None:
        self.must_close = True
        if self._reading is None:
            self._discarding = True
        if self.current is None and not self._lingering:
            self._close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _leave(self, request: ServedRequest) -> None:
        """The client has gone: cancel the request's task, which learns the reason from `gone`."""
        if request.done:
            return
        request.gone = True
        self.connections.held.discard(request)
        request.wake()
        task = request.task
        if task is not None and not task.done():
            # A task that is cancelled before its first step never runs, and neither does its own clean-up.
            task.add_done_callback(self.connections.tasks.discard)
            task.cancel()

    def _close(self) -> None:
        """Close once all written data was sent, within the linger timeout."""
        self._discarding = True
        self._lingering = True
        self._arm_linger()
        self.transport.close()

    def _arm_linger(self) -> None:
        """Set the deadline of a closing connection. A client that reads at its rate gets the end of its answer."""
        if self.transport.get_write_buffer_size():
            self._write_progress = WriteProgress(self.transport)
            self._arm(self._wait_for_progress(self._write_progress))
        else:
            self._write_progress = None
            self._arm(self.limits.linger_timeout)

    def _linger(self) -> None:
        """End our sending side, and drop everything that the client still sends.

        Closing a socket with unread bytes resets it, and the reset can overtake the answer that was just written.
        """
        if self._lingering:
            return
        self._discarding = True
        self._lingering = True
        self._discarded = 0
        if self._eof:
            self._close()
            return
        self._arm_linger()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.regulate_reading()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self.limits.drain_bytes:
            if self._lingering:
                self.transport.abort()
            else:
                self.regulate_reading()

    # Timers: one handle per connection, moved lazily; a request that arrives whole needs none -------------------------

    def _arm(self, seconds: float) -> None:
        self._deadline = when = self.loop.time() + seconds
        self.ring_at(when)

    def ring_at(self, when: float) -> None:
        """Run the timer at this time of the loop's clock, at the latest."""
        if self._timer is None or self._timer_at > when:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = when
            self._timer = self.loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self.loop.time()
        current = self.current
        if current is not None and (patience := current.body_patience) is not None and patience.due:
            if now < patience.due:
                self.ring_at(patience.due)
            else:
                current.late()
        if not self._deadline:
            return
        if now < self._deadline:
            self.ring_at(self._deadline)
            return
        self._deadline = 0.0
        if self._lingering:
            if not (self.transport.get_write_buffer_size() and self._reads_enough()):
                self.transport.abort()
        elif current is not None:
            if not (self._is_there() if self._eof else not self.write_paused or self._reads_enough()):
                self._leave(current)
                self.transport.abort()
        elif self._reading is not None:  # an unwanted body that does not end
            self._linger()
        elif self._idle or not (self._url or self._unfinished):
            self._close()
        else:
            self._refuse(HeadRefused("head_timeout", 408))

    # Parsing ----------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            if self._raw is None:
                self._discard(len(data))
            else:
                self._raw.feed(data)
            return
        self._segment = size = len(data)
        self._completed = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The following bytes belong to the requested protocol, and are not HTTP, whether it is granted or not.
            self._discarding = True
            if self._raw is not None and (behind := data[upgrade.args[0] :]):
                self._raw.feed(behind)
            return
        except httptools.HttpParserError as error:
            if not self._discarding:  # else the error is in bytes behind the last request
                self._refuse(self._refusal or self._why(error))
            return
        if self._reading is not None:
            self._silent = 0 if self._silent < 0 else self._silent + size
            if self._silent > self.limits.head_bytes:
                self._refuse(HeadRefused("trailer_bytes", 431))
        elif self._url or not self._completed:
            self._unfinished = 0 if self._completed else self._unfinished + size
            if self._unfinished > self.limits.head_bytes:
                self._refuse(HeadRefused("head_bytes", 431))
            elif self._idle:
                # This is the first piece of a later request's head: its timeout starts now.
                self._idle = False
                self._arm(self.limits.head_timeout)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        try:
            lower, kind = KNOWN[name]
        except KeyError:
            lower, kind = learn(name)
        if kind:
            self._framing_fields.append((kind, value))
        if value and value[-1] <= 32:
            value = value.rstrip(b" \t")
        self._fields.append((lower, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        limits = self.limits
        self._completed = True
        fields, self._fields = self._fields, []
        framing, self._framing_fields = self._framing_fields, []
        url, self._url = self._url, b""
        size, self._unfinished = self._unfinished + self._segment, 0
        try:
            if self._discarding:
                raise HeadRefused("closing")
            if len(fields) > limits.head_lines:
                raise HeadRefused("head_lines", 431)
            if size > limits.head_bytes and len(url) + _octets(fields) > limits.head_bytes:
                raise HeadRefused("head_bytes", 431)
            method = parser.get_method()
            keep_alive = parser.should_keep_alive()
            if keep_alive and len(framing) == 1 and framing[0][0] == HOST and framing[0][1] in VALID_HOSTS:
                # The common request. Without a Connection field, only HTTP/1.1 is kept alive, by the parser's rules and
                # RFC 9112's, and asking the parser for the version costs as much as checking the target.
                version = "1.1"
                host = framing[0][1]
                length = 0
                expects = upgrade = False
            else:
                version = parser.get_http_version()
                if version not in _VERSIONS:
                    raise HeadRefused("version", 505)
                host, length, expects = check_framing_fields(version, framing)
                upgrade = parser.should_upgrade()
                if upgrade:
                    if length:
                        raise HeadRefused("upgrade_body")
                    keep_alive = False
            path, query = judge_target(method, url, host)
        except HeadRefused as refused:
            refused.method = parser.get_method().decode("latin-1")
            refused.target = url
            self._refusal = refused
            raise
        self._reading = request = ServedRequest(
            self, method == b"HEAD", version == "1.1", keep_alive, length != 0, expects
        )
        if upgrade and version == "1.1":  # RFC 9110 §7.8: ignored on HTTP/1.0
            request.upgrade = True
            self._raw = request.raw = RawStream(self, request)
        self._silent = -1
        text = path.decode("ascii")
        # A copy with the same keys replaced is cheaper than a new dictionary.
        scope = self._scope.copy()
        scope["http_version"] = version
        scope["method"] = method.decode("ascii")
        scope["path"] = unquote(text) if "%" in text else text
        scope["raw_path"] = path
        scope["query_string"] = query
        scope["headers"] = fields
        scope["state"] = {ORIGIN_STATE: self.origin}
        scope["extensions"] = {CONNECTION_EXTENSION: request, "http.response.trailers": _NOTHING}
        if self.current is None:
            self._start(request, scope)
        else:
            self._queue.append((request, scope))
            self.regulate_reading()

    def on_body(self, body: bytes) -> None:
        self._silent = -1
        request = self._reading
        if request is None:
            return
        if request.done:
            self._discarded += len(body)
            if self._discarded > self.limits.drain_bytes:
                self._linger()
            return
        request.expects = False
        if request.chunks:
            request.chunks.append(body)
        else:
            request.chunks = [body]
        request.buffered += len(body)
        if request.waiter is not None:
            request.wake()
        if request.buffered > self.limits.body_buffer:
            self.regulate_reading()

    def on_message_complete(self) -> None:
        request = self._reading
        if request is None:
            return
        if self._fields:
            # Fields behind the head are trailers: the head that the application received stays as it was checked.
            trailers, self._fields = self._fields, []
            self._framing_fields = []
            if len(trailers) > self.limits.head_lines or _octets(trailers) > self.limits.head_bytes:
                self._refusal = HeadRefused("trailer_bytes", 431)
                raise self._refusal
            request.trailers = trailers
        self._reading = None
        self._completed = True  # this segment belonged to a body: none of it counts for the next head
        request.complete = True
        request.expects = False
        if not request.keep_alive or self.must_close:
            self._discarding = True
        if request.done:
            if not self._lingering:
                self._next(request)
        elif request.waiter is not None:
            request.wake()

    def _why(self, error: httptools.HttpParserError) -> HeadRefused:
        if isinstance(error, httptools.HttpParserCallbackError):
            # This is not a refusal but a defect in the proxy, so the connection ends.
            self.connections.log.error("listener.parser_callback_failed", exc_info=error.__context__ or error)
            return HeadRefused("internal", 500)
        if self._reading is not None:
            return HeadRefused("malformed_body")
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            return HeadRefused("malformed_method")
        if isinstance(error, httptools.HttpParserInvalidURLError):
            return HeadRefused("malformed_target")
        return HeadRefused("malformed")

    def _refuse(self, refusal: HeadRefused) -> None:
        """Answer in place of the application, which does not see this request, and end the connection."""
        self._discarding = True
        refusal.target = refusal.target or self._url
        self._fields, self._framing_fields, self._url, self._unfinished = [], [], b"", 0
        self._refusal = None
        reading, self._reading = self._reading, None
        if reading is None or reading is not self.current:  # else it is an exchange already
            refusal.exchange = self.connections.record_refusal(self.origin, "https" if self._tls else "http", refusal)
        self.connections.count(f"head_refused_{refusal.reason}")
        self.connections.log.info(
            "request.refused",
            reason=refusal.reason,
            status=refusal.status,
            listener=self.connections.listener,
            peer=self.origin.peer.host,
            exchange=refusal.exchange,
        )
        if reading is None:
            if self.current is not None:
                self._queue.append(refusal)  # answers keep the order of the requests
            else:
                self._answer(refusal)
        elif reading is not self.current:
            if reading.done:
                self._linger()
            else:
                self._queue[-1] = refusal
        else:
            # The body is malformed, and the application already has the request.
            self.current = None
            self._queue.clear()
            self._leave(reading)
            if reading.head_sent:
                self.transport.abort()
            else:
                self._answer(refusal)

    def _answer(self, refusal: HeadRefused) -> None:
        self.transport.write(_refusal_response(refusal.status, exchange=refusal.exchange))
        self._linger()

    # Requests ---------------------------------------------------------------------------------------------------------

    def _start(self, request: ServedRequest, scope: Scope) -> None:
        self.current = request
        self._deadline = 0.0
        self._idle = False
        # No group: a request that fails ends its connection only. `connections.tasks` owns the task.
        task = start_owned(self._run(request, scope))
        request.task = task
        self.connections.tasks.add(task)

    async def _run(self, request: ServedRequest, scope: Scope) -> None:
        try:
            await self.app(scope, request.receive, request.send)
        except asyncio.CancelledError:
            request.abort()
        except DownstreamError as error:  # from `receive`, unless the application handles it
            self._fail(request, error.status)
        except Exception as error:
            if not request.gone:
                self.connections.log.error("application.failed", listener=self.connections.listener, exc_info=error)
                self._fail(request)
        else:
            if not request.done and not request.gone:
                self.connections.log.error("application.unfinished", listener=self.connections.listener)
                self._fail(request)
        finally:
            task = request.task
            if task is not None:
                self.connections.tasks.discard(task)
                request.task = None

    def _fail(self, request: ServedRequest, status: int = 500) -> None:
        """The application failed: answer with an error while that is possible, else truncate the response."""
        if request.done:
            return
        if request.head_sent:
            request.abort()
            return
        self.connections.held.discard(request)
        request.done = True
        request.keep_alive = False
        self.transport.write(_refusal_response(status, with_body=not request.head_only))
        self.response_done(request)

    def response_done(self, request: ServedRequest) -> None:
        """The answer is written: continue with the next request on this connection."""
        if self.current is not request:
            return
        self.current = None
        if request.complete:
            if request.keep_alive and not (
                self._queue or self._url or self._unfinished or self.must_close or self._eof
            ):  # `_next`, for the common case
                self._idle = True
                self._deadline = when = self.loop.time() + self.limits.idle_timeout
                if self._timer is None or self._timer_at > when:
                    self._arm(self.limits.idle_timeout)
            else:
                self._next(request)
        elif request.close_delimited:
            self._close()
        elif request.keep_alive and not self.must_close:
            self._discarded = 0
            self.regulate_reading()
            self._arm(self.limits.linger_timeout)
        else:
            self._linger()

    def _next(self, previous: ServedRequest) -> None:
        if not previous.keep_alive or self.must_close or (self._eof and not self._queue):
            if self._raw is not None:  # not granted
                self._discarded += self._raw.buffered
                self._raw = None
            if self._discarded:
                self._linger()
            else:
                self._close()
        elif self._queue:
            following = self._queue.popleft()
            self.regulate_reading()
            if isinstance(following, HeadRefused):
                self._answer(following)
            else:
                self._start(*following)
        elif self._url or self._unfinished:
            self._idle = False
            self._arm(self.limits.head_timeout)
        else:
            self._idle = True
            self._arm(self.limits.idle_timeout)

    def cut(self, request: ServedRequest) -> None:
        """End the connection in the middle of a response."""
        if self.current is request:
            self.current = None
        if request.close_delimited:
            # Only a reset shows this client that the response is incomplete.
            _reset_on_close(self.transport)
        self.transport.abort()

    def start_raw(self, raw: RawStream, head: bytes) -> None:
        """Send the 101. From then on each side of the connection ends separately."""
        raw.switched = True
        if self._eof:
            self._eof = False
            self._deadline = 0.0
            raw.feed_eof()
        self.transport.write(head)

    def close_raw(self, request: ServedRequest) -> None:
        """An upgraded connection is over: close it once all written data was sent."""
        if self.current is not request:
            return  # the connection is already lost
        self.current = None
        raw, self._raw = self._raw, None
        if self._tls or raw is None or raw.ended:
            self._close()
        else:
            self._discarded = raw.buffered
            self._linger()

    # Flow -------------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.write_paused = True
        if not self._deadline:
            self._write_progress = WriteProgress(self.transport)
            self._arm(self._wait_for_progress(self._write_progress))

    def _wait_for_progress(self, progress: WriteProgress) -> float:
        self._patience = progress.patience(self.limits)
        return self._patience

    def _reads_enough(self) -> bool:
        """True if the client has read enough of the waiting data since the last check. Extends the deadline then."""
        if self._write_progress is None:
            return False
        if self._write_progress.since_last_check() < max(1.0, self.limits.min_rate * self._patience):
            self.connections.count("write_too_slow")
            return False
        self._arm(self._wait_for_progress(self._write_progress))
        return True

    def _is_there(self) -> bool:
        """True if a client that has ended its sending side has read anything since the last check."""
        if self._write_progress is None or not self._write_progress.since_last_check():
            return False
        self._arm(self.limits.half_close_timeout)
        return True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.current is not None and not self._eof:
            self._deadline = 0.0
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def writable(self) -> None:
        """Wait until the transport accepts more data, or is closed."""
        while self.write_paused:
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    def regulate_reading(self) -> None:
        """Read only while the buffers for an unread body and for waiting requests are not full."""
        reading = self._reading
        full = (
            len(self._queue) >= self.limits.pipeline_depth
            or (reading is not None and not reading.done and reading.buffered > self.limits.body_buffer)
            or (self._raw is not None and self._raw.buffered > self.limits.body_buffer)
            or (self._discarding and not self._lingering and self._discarded > self.limits.drain_bytes)
        )
        if full is not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = full
            if full:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()


def _octets(fields: Iterable[RawHeader]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in fields)


def _refusal_response(status: int, *, with_body: bool = True, exchange: str = "") -> bytes:
    code, sentence = _SENTENCES[status]
    body = code + b": " + sentence + b"\n"
    if exchange:
        body += b"exchange: " + exchange.encode("ascii") + b"\n"
    head = STATUS_LINES[status] + (
        b"\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
        % (len(body), b"%b: %b\r\n" % retry_after(1) if status == 503 else b"")
    )
    return head + body if with_body else head


def _reset_on_close(transport: asyncio.Transport) -> None:
    handle = transport.get_extra_info("socket")
    if handle is not None:
        try:
            # Through a duplicate: the socket objects of event loops have no setsockopt.
            with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return
