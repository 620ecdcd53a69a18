"""Our own HTTP/1.1 server protocol: bytes from any `asyncio.Transport`, read by the engine, served as ASGI 3.

A connection serves one request at a time, each in its own task. A request that the engine refuses never reaches the
application. The engine's `Reader` judges heads, frames bodies, and limits the bytes that are no body. This module
decides the order of requests, and how long each may take.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from netbird_host.tasks import start_owned
from netbird_http import End, Head, Reader
from netbird_proxy.api.errors import DownstreamError
from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, Scope
from netbird_proxy.http.refusals import RefusedHead, refusal_response
from netbird_proxy.listening.connections import Capacity, Connections, Place
from netbird_proxy.listening.lifetime import Lifetime, reset_on_close
from netbird_proxy.listening.pace import WriteProgress
from netbird_proxy.listening.raw import RawStream
from netbird_proxy.listening.request import ServedRequest

if TYPE_CHECKING:
    from netbird_http import Refused
    from netbird_proxy.api.model import Origin

_ASGI = {"version": "3.0", "spec_version": "2.5"}
_NOTHING: dict[str, Any] = {}


class Http1Protocol(Lifetime):
    """An accepted connection, with the requests on it."""

    __slots__ = (
        "_idle", "_place", "_queue", "_raw", "_reader", "_reading", "_reading_paused", "_scope", "_tls", "app",
        "current", "must_close", "origin",
    )  # fmt: skip

    def __init__(
        self, connections: Connections, loop: asyncio.AbstractEventLoop | None = None, *, place: Place | None = None
    ) -> None:
        """Args:
        place: the object under which the connection is already counted; without it `connection_made` counts it.
        """
        super().__init__(connections, loop)
        self.app = connections.app
        self._place = place
        self.origin: Origin = cast("Origin", None)
        self._scope: Scope = {}  # template of each request's scope
        self.must_close = False
        self._reader = Reader(max_bytes=self.limits.head_bytes, max_lines=self.limits.head_lines)
        self._reading_paused = False
        self._tls = False
        self._idle = False  # between requests, before the first byte of the next one
        # State of requests: the one whose body is read, the one that is answered, and those that wait.
        self._raw: RawStream | None = None  # receives the bytes behind a request for an upgrade
        self._reading: ServedRequest | None = None
        self.current: ServedRequest | None = None
        self._queue: deque[tuple[ServedRequest, Scope] | RefusedHead] = deque()

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
            self.transport.write(refusal_response(503))
            self._linger()

    def connection_lost(self, exc: Exception | None) -> None:
        self._discarding = True
        self._queue.clear()
        self._reading = None
        current, self.current = self.current, None
        if current is not None:
            if exc is None and current.raw is not None and current.raw.switched:
                current.raw.lost()
            else:
                self._leave(current)
        self._end_waiting()
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

    # Deadlines --------------------------------------------------------------------------------------------------------

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
        elif self._idle or not self._reader.in_head:
            self._close()
        else:
            self._refuse(RefusedHead("head_timeout", 408, *self._reader.request_line))

    # Reading ----------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            if self._raw is None:
                self._discard(len(data))
            else:
                self._raw.feed(data)
            return
        for event in self._reader.feed(data):
            if not self._discarding:
                if isinstance(event, Head):
                    self._begin(event)
                elif isinstance(event, bytes):
                    self._take(event)
                elif isinstance(event, End):
                    self._end(event)
                else:
                    self._refuse(_refused(event))
            elif self._raw is not None and isinstance(event, bytes):
                self._raw.feed(event)
        if self._idle and self._reader.in_head:
            # This is the first piece of a later request's head: its timeout starts now.
            self._idle = False
            self._arm(self.limits.head_timeout)

    def _begin(self, head: Head) -> None:
        method = head.method
        http11 = head.http11
        has_body = head.has_body
        request = ServedRequest(self, method == "HEAD", http11, head.keep_alive, has_body, head.expects)
        if head.empty_query:
            request.empty_query = True
        if has_body:
            self._reading = request
        else:
            request.complete = True
            if head.upgrade:
                # The following bytes belong to the requested protocol, and are not HTTP, whether it is granted or not.
                request.upgrade = True
                self._raw = request.raw = RawStream(self, request)
            if not request.keep_alive or self.must_close:
                self._discarding = True
        # A copy with the same keys replaced is cheaper than a new dictionary.
        scope = self._scope.copy()
        scope["http_version"] = "1.1" if http11 else "1.0"
        scope["method"] = method
        scope["path"] = head.path
        scope["raw_path"] = head.raw_path
        scope["query_string"] = head.query
        scope["headers"] = head.headers
        scope["state"] = {ORIGIN_STATE: self.origin}
        scope["extensions"] = {CONNECTION_EXTENSION: request, "http.response.trailers": _NOTHING}
        if self.current is None:
            self._start(request, scope)
        else:
            self._queue.append((request, scope))
            self.regulate_reading()

    def _take(self, body: bytes) -> None:
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

    def _end(self, end: End) -> None:
        request = self._reading
        if request is None:
            return
        # The head that the application received stays as it was judged, without the fields behind the body.
        request.trailers = end.trailers
        self._reading = None
        request.complete = True
        request.expects = False
        if not request.keep_alive or self.must_close:
            self._discarding = True
        if request.done:
            if not self._lingering:
                self._next(request)
        elif request.waiter is not None:
            request.wake()

    def _refuse(self, refusal: RefusedHead) -> None:
        """Answer in place of the application, which does not see this request, and end the connection."""
        self._discarding = True
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

    def _answer(self, refusal: RefusedHead) -> None:
        self.transport.write(refusal_response(refusal.status, exchange=refusal.exchange))
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
        self.transport.write(refusal_response(status, with_body=not request.head_only))
        self.response_done(request)

    def response_done(self, request: ServedRequest) -> None:
        """The answer is written: continue with the next request on this connection."""
        if self.current is not request:
            return
        self.current = None
        if request.complete:
            if request.keep_alive and not (
                self._queue or self.must_close or self._eof or self._reader.in_head
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
            if isinstance(following, RefusedHead):
                self._answer(following)
            else:
                self._start(*following)
        elif self._reader.in_head:
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
            reset_on_close(self.transport)
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

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.current is not None and not self._eof:
            self._deadline = 0.0
        self._wake_writers()

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


def _refused(event: Refused) -> RefusedHead:
    return RefusedHead(event.reason, event.status, event.method, event.target)
