"""Our own HTTP/1.1 server protocol: bytes from any `asyncio.Transport`, parsed by httptools, served as ASGI 3.

One request at a time, one task a request. A head that the parser or `head.py` refuses never reaches the application.
What is counted and checked on the way is counted where the parser already stands; nothing is parsed twice.
"""

# One file of this length: the parser's callbacks, the timers and the ways in which a connection ends all read and write
# the same few flags, and each rule about them holds only if the others do. What can stand alone does: `head.py` judges,
# `framing.py` writes heads, `request.py` is one request, `connections.py` is all of them.

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
    """One accepted connection.

    Its transport may be a socket's, a tunnel's, or TLS over either: all it needs is `asyncio.Transport`.
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
        place: what the connection is counted under already; without it `connection_made` counts it.
        """
        # For the listener's life.
        self.loop = loop or asyncio.get_running_loop()
        self.connections = connections
        self.app = connections.app
        self.limits = connections.limits
        # For the connection's life.
        self._place = place
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.origin: Origin = cast("Origin", None)
        self._scope: Scope = {}  # what every request's scope starts from
        self.must_close = False
        self.write_paused = False
        self._parser: Any = httptools.HttpRequestParser(self)
        self._drained: asyncio.Future[None] | None = None
        self._patience = 0.0  # how long the client had for what it was to take by now
        self._write_progress: WriteProgress | None = None  # while something waits that the client does not take
        self._reading_paused = False
        self._eof = False
        self._tls = False
        self._idle = False  # between requests, and nothing of the next one has come
        self._discarding = False  # what still comes is dropped
        self._discarded = 0
        self._lingering = False  # our side is done; only the client's last bytes are waited for
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline = 0.0  # zero: nothing is waited for
        self._refusal: HeadRefused | None = None
        # For one request: what is being parsed, the one being answered, and those behind it.
        self._url = b""
        self._fields: list[RawHeader] = []
        self._framing_fields: list[FramingField] = []
        self._segment = 0  # bytes in the piece being parsed
        self._unfinished = 0  # bytes of earlier pieces that belong to the head being parsed
        self._completed = False  # a head was completed by this piece
        self._silent = 0  # bytes of the body's framing since its last body byte
        self._raw: RawStream | None = None  # takes what comes behind a request for an upgrade
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
        """One connection too many: it is told, as long as not even that is too much."""
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
        self._parser = None  # it holds our bound methods: without this every connection waits for the cycle collector
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
        """The client has shut down its sending side; whoever sent a whole request still gets the answer."""
        if self._raw is not None and self._raw.switched and not self._lingering:
            if self._tls:  # it has no half-close: the transport closes
                self._raw.lost()
                return False
            self._raw.feed_eof()
            return True
        self._eof = True
        self._discarding = True
        if self._lingering or self.current is None:
            return False
        if self._tls:
            return False  # it has no half-close: the transport closes, and connection_lost does the rest
        reading, self._reading = self._reading, None
        if reading is self.current:
            # Cut off in the middle of its body: there is nobody to answer, and nothing may look complete.
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

    def _leave(self, served: ServedRequest) -> None:
        """The client is no longer there for this request: its task is cancelled, and knows why."""
        if served.done:
            return
        served.gone = True
        self.connections.held.discard(served)
        served.wake()
        task = served.task
        if task is not None and not task.done():
            # A task that is cancelled before its first step never runs, so its own clean-up does not either.
            task.add_done_callback(self.connections.tasks.discard)
            task.cancel()

    def _close(self) -> None:
        """Close once everything that was written is out, within the linger bound."""
        self._discarding = True
        self._lingering = True
        self._arm_linger()
        self.transport.close()

    def _arm_linger(self) -> None:
        """What a client still takes at its pace is not cut off: an answer's end is worth no less than its middle."""
        if self.transport.get_write_buffer_size():
            self._write_progress = WriteProgress(self.transport)
            self._arm(self._asked_for(self._write_progress))
        else:
            self._write_progress = None
            self._arm(self.limits.linger_timeout)

    def _linger(self) -> None:
        """Say that we are done, and swallow what the client still sends.

        Closing a socket with unread bytes resets it, and the reset can overtake the answer we just wrote.
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

    # Timers: one handle a connection, moved lazily; a request that arrives whole touches none -------------------------

    def _arm(self, seconds: float) -> None:
        self._deadline = when = self.loop.time() + seconds
        self.ring_at(when)

    def ring_at(self, when: float) -> None:
        """Look again then, at the latest."""
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
            if not (self.transport.get_write_buffer_size() and self._takes_enough()):
                self.transport.abort()
        elif current is not None:
            if not (self._is_there() if self._eof else not self.write_paused or self._takes_enough()):
                self._leave(current)
                self.transport.abort()
        elif self._reading is not None:  # a body that nobody wants, and that does not end
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
            # What follows belongs to the protocol that was asked for, and is no HTTP whatever the answer.
            self._discarding = True
            if self._raw is not None and (behind := data[upgrade.args[0] :]):
                self._raw.feed(behind)
            return
        except httptools.HttpParserError as error:
            if not self._discarding:  # else it is about what stands behind the last request
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
                # The first piece of a later request's head: its time starts here.
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
                # The plain request. What keeps itself alive without a Connection field is 1.1, by the parser's rules
                # and RFC 9112's, and asking for the version costs as much as judging the target.
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
        self._reading = served = ServedRequest(
            self, method == b"HEAD", version == "1.1", keep_alive, length != 0, expects
        )
        if upgrade and version == "1.1":  # RFC 9110 §7.8: on 1.0 it must be ignored
            served.upgrade = True
            self._raw = served.raw = RawStream(self, served)
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
        scope["extensions"] = {CONNECTION_EXTENSION: served, "http.response.trailers": _NOTHING}
        if self.current is None:
            self._start(served, scope)
        else:
            self._queue.append((served, scope))
            self.regulate_reading()

    def on_body(self, body: bytes) -> None:
        self._silent = -1
        served = self._reading
        if served is None:
            return
        if served.done:
            self._discarded += len(body)
            if self._discarded > self.limits.drain_bytes:
                self._linger()
            return
        served.expects = False
        if served.chunks:
            served.chunks.append(body)
        else:
            served.chunks = [body]
        served.buffered += len(body)
        if served.waiter is not None:
            served.wake()
        if served.buffered > self.limits.body_buffer:
            self.regulate_reading()

    def on_message_complete(self) -> None:
        served = self._reading
        if served is None:
            return
        if self._fields:
            # Whatever comes behind the head is a trailer: the head that the application has stays as it was judged.
            trailers, self._fields = self._fields, []
            self._framing_fields = []
            if len(trailers) > self.limits.head_lines or _octets(trailers) > self.limits.head_bytes:
                self._refusal = HeadRefused("trailer_bytes", 431)
                raise self._refusal
            served.trailers = trailers
        self._reading = None
        self._completed = True  # what this segment had was a body's: none of it counts as the next head's
        served.complete = True
        served.expects = False
        if not served.keep_alive or self.must_close:
            self._discarding = True
        if served.done:
            if not self._lingering:
                self._next(served)
        elif served.waiter is not None:
            served.wake()

    def _why(self, error: httptools.HttpParserError) -> HeadRefused:
        if isinstance(error, httptools.HttpParserCallbackError):
            # Not one of our refusals: a defect of ours, and no reason to go on with this client.
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
        """Answer for the application, which does not see this request, and end the connection."""
        self._discarding = True
        refusal.target = refusal.target or self._url
        self._fields, self._framing_fields, self._url, self._unfinished = [], [], b"", 0
        self._refusal = None
        reading, self._reading = self._reading, None
        if reading is None or reading is not self.current:  # else the application has it, and it is an exchange already
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
            # The body broke while the application had the request.
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

    def _start(self, served: ServedRequest, scope: Scope) -> None:
        self.current = served
        self._deadline = 0.0
        self._idle = False
        task = self.loop.create_task(self._run(served, scope))
        served.task = task
        self.connections.tasks.add(task)

    async def _run(self, served: ServedRequest, scope: Scope) -> None:
        try:
            await self.app(scope, served.receive, served.send)
        except asyncio.CancelledError:
            served.abort()
        except DownstreamError as error:  # from `receive`; an application that knows it answers by itself
            self._fail(served, error.status)
        except Exception as error:
            if not served.gone:
                self.connections.log.error("application.failed", listener=self.connections.listener, exc_info=error)
                self._fail(served)
        else:
            if not served.done and not served.gone:
                self.connections.log.error("application.unfinished", listener=self.connections.listener)
                self._fail(served)
        finally:
            task = served.task
            if task is not None:
                self.connections.tasks.discard(task)
                served.task = None

    def _fail(self, served: ServedRequest, status: int = 500) -> None:
        """The application gave up: say so while that is possible, else let the client see that it is cut off."""
        if served.done:
            return
        if served.head_sent:
            served.abort()
            return
        self.connections.held.discard(served)
        served.done = True
        served.keep_alive = False
        self.transport.write(_refusal_response(status, with_body=not served.head_only))
        self.response_done(served)

    def response_done(self, served: ServedRequest) -> None:
        """The answer is written. Go on with what follows on this connection."""
        if self.current is not served:
            return
        self.current = None
        if served.complete:
            if served.keep_alive and not (
                self._queue or self._url or self._unfinished or self.must_close or self._eof
            ):  # `_next`, for the plain case
                self._idle = True
                self._deadline = when = self.loop.time() + self.limits.idle_timeout
                if self._timer is None or self._timer_at > when:
                    self._arm(self.limits.idle_timeout)
            else:
                self._next(served)
        elif served.close_delimited:
            self._close()
        elif served.keep_alive and not self.must_close:
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

    def cut(self, served: ServedRequest) -> None:
        """End the connection in the middle of an answer."""
        if self.current is served:
            self.current = None
        if served.close_delimited:
            # Only a reset tells this client that the end is not the end.
            _reset_on_close(self.transport)
        self.transport.abort()

    def start_raw(self, raw: RawStream, head: bytes) -> None:
        """The 101 goes out; from here the two sides end each by itself."""
        raw.switched = True
        if self._eof:
            self._eof = False
            self._deadline = 0.0
            raw.feed_eof()
        self.transport.write(head)

    def close_raw(self, served: ServedRequest) -> None:
        """An upgraded connection is over: close once what was written is out."""
        if self.current is not served:
            return  # it is lost already
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
            self._arm(self._asked_for(self._write_progress))

    def _asked_for(self, progress: WriteProgress) -> float:
        self._patience = progress.patience(self.limits)
        return self._patience

    def _takes_enough(self) -> bool:
        """Whether the client has read enough of what waits for it since the last look; then it has as long again."""
        if self._write_progress is None:
            return False
        if self._write_progress.since_last_look() < max(1.0, self.limits.min_rate * self._patience):
            self.connections.count("write_too_slow")
            return False
        self._arm(self._asked_for(self._write_progress))
        return True

    def _is_there(self) -> bool:
        """Whether a client that sends no more has read anything since the last look."""
        if self._write_progress is None or not self._write_progress.since_last_look():
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
        """Wait until the transport takes more, or is gone."""
        while self.write_paused:
            if self._drained is None or self._drained.done():
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    def regulate_reading(self) -> None:
        """Read only while there is room: for a body that is not fetched, and for requests behind the present one."""
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
            # Through a duplicate: event loops hand out stand-ins that have no setsockopt.
            with socket.socket(fileno=socket.dup(handle.fileno())) as twin:
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            return
