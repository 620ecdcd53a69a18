"""Upstreams by script: in memory, as the pool's other half, and on a socket, byte for byte."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from netbird_proxy.api.errors import UpstreamClosed, UpstreamError
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Upstream
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.upstreams.protocols import Informational, UpstreamConnection

NOTHING: list[RawHeader] = []


@dataclass(slots=True)
class ScriptedAnswer:
    """The scripted answer of an upstream.

    Attributes:
        body: its pieces, in order; an exception among them is raised when its turn comes.
        before: informational heads that come first.
        waits: for the request body's end before the head is given.
        hold: the answer's head waits for this event.
    """

    status: int = 200
    headers: list[RawHeader] = field(default_factory=list)
    body: Sequence[bytes | BaseException] = ()
    trailers: list[RawHeader] = field(default_factory=list)
    before: Sequence[tuple[int, list[RawHeader]]] = ()
    waits: bool = True
    hold: asyncio.Event | None = None
    reason: bytes = b""
    complete: bool = False
    _pieces: deque[bytes | BaseException] | None = None

    async def read(self) -> bytes:
        if self._pieces is None:
            self._pieces = deque(self.body)
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if isinstance(piece, BaseException):
            raise piece
        return piece


def ok(body: bytes = b"hello", *headers: RawHeader) -> ScriptedAnswer:
    """200 with a body of known length."""
    return ScriptedAnswer(headers=[(b"content-length", b"%d" % len(body)), *headers], body=(body,) if body else ())


class ScriptedConnection:
    """One connection, and what was sent on it. Implements `UpstreamConnection`."""

    def __init__(self, pool: ScriptedPool, script: ScriptedAnswer | UpstreamError, *, reused: bool) -> None:
        self._pool = pool
        self._script = script
        self._sent = asyncio.Event()
        self._broken = asyncio.Event()
        self.reused = reused
        self.nothing_received = True
        self.head = b""
        self.method = b""
        self.body = bytearray()
        self.chunked = False
        self.trailers: list[RawHeader] = []
        self.complete = False
        self.aborted = False
        self.released = False
        self.upgrade = False
        self.half_closes = True

    def send_head(self, head: bytes, *, method: bytes, has_body: bool, upgrade: bool = False) -> None:
        self.head = head
        self.method = method
        self.upgrade = upgrade
        if not has_body:
            self.complete = True
            self._sent.set()

    async def send_body(self, data: bytes, *, chunked: bool) -> None:
        if self.aborted:
            raise UpstreamClosed("given up")
        self.chunked = chunked
        self.body += data

    def finish_body(self, trailers: list[RawHeader], *, chunked: bool) -> None:
        self.chunked = chunked
        self.trailers = trailers
        self.complete = True
        self._sent.set()

    async def answer(self, informational: Informational | None = None) -> ScriptedAnswer:
        script = self._script
        if isinstance(script, UpstreamError):
            raise script
        if script.waits:
            await self._sent.wait()
        if script.hold is not None:
            await script.hold.wait()
        self.nothing_received = False
        for status, headers in script.before:
            if informational is not None:
                await informational(status, headers)
        return script

    def abort(self) -> None:
        self.aborted = True
        self._pool.record("abort")

    @property
    def lines(self) -> list[bytes]:
        """The head's lines."""
        return self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")

    @property
    def request_line(self) -> bytes:
        return self.lines[0]

    @property
    def fields(self) -> list[RawHeader]:
        """The head's fields as they were written."""
        return [(name, value) for line in self.lines[1:] for name, _, value in [line.partition(b": ")]]

    def get(self, name: bytes) -> list[bytes]:
        """Every value of a field, by its exact lower-case name."""
        return [value for key, value in self.fields if key == name]


class ScriptedPool:
    """One upstream by script: each `acquire` takes the next answer, the last one stays. Implements the retiring pool.

    Attributes:
        connections: every connection given out, oldest first.
        sources: whom they were asked for, in that order.
    """

    def __init__(self, upstream: Upstream, dialer: Dialer, script: Upstreams) -> None:
        self.upstream = upstream
        self.dialer = dialer
        self._script = script
        self.retired = False
        self.in_flight = 0
        self.sources: list[str] = []

    async def acquire(self, *, fresh: bool = False, source: str = "") -> ScriptedConnection:
        self.sources.append(source)
        self.record(f"dial {self.upstream}")
        script = self._script.next()
        if isinstance(script, UpstreamError) and not isinstance(script, UpstreamClosed):
            raise script
        connection = ScriptedConnection(self, script, reused=self._script.reused and not fresh)
        self.in_flight += 1
        self._script.connections.append(connection)
        self._script.in_use.set()
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        assert isinstance(connection, ScriptedConnection)
        assert not connection.released, "given back twice"
        connection.released = True
        self.in_flight -= 1

    def retire(self) -> None:
        self.retired = True

    def record(self, effect: str) -> None:
        self._script.record(effect)


class Upstreams:
    """All upstreams of a test: a pool factory with a script.

    Args:
        answers: what they answer, in order; an UpstreamError fails the dial, UpstreamClosed fails the answer.
        reused: connections say that they have carried an exchange before.

    Attributes:
        in_use: set once a connection has been given out.
    """

    def __init__(
        self,
        answers: Iterable[ScriptedAnswer | UpstreamError] = (),
        *,
        reused: bool = False,
        record: Callable[[str], None] = lambda _effect: None,
    ) -> None:
        self._answers = deque(answers)
        self.reused = reused
        self.record = record
        self.pools: list[ScriptedPool] = []
        self.connections: list[ScriptedConnection] = []
        self.in_use = asyncio.Event()

    def __call__(self, upstream: Upstream, dialer: Dialer) -> ScriptedPool:
        pool = ScriptedPool(upstream, dialer, self)
        self.pools.append(pool)
        return pool

    def next(self) -> ScriptedAnswer | UpstreamError:
        if not self._answers:
            return ok()
        return self._answers.popleft()

    @property
    def dialed(self) -> int:
        return len(self.connections)

    @property
    def last(self) -> ScriptedConnection:
        return self.connections[-1]


class ScriptedServer:
    """A TCP server that answers each request head with bytes of the test's choosing.

    Attributes:
        received: all bytes of each connection, oldest first.
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, reply: Callable[[bytes], bytes | None]) -> None:
        self._reply = reply
        self.received: list[bytearray] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        self.received.append(got)
        self._writers.add(writer)
        answered = 0
        try:
            while data := await reader.read(65536):
                got += data
                while (end := got.find(b"\r\n\r\n", answered)) != -1:
                    head = bytes(got[answered : end + 4])
                    answered = end + 4
                    reply = self._reply(head)
                    if reply is None:
                        return
                    writer.write(reply)
                    await writer.drain()
        except ConnectionError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    @classmethod
    @asynccontextmanager
    async def serving(cls, reply: Callable[[bytes], bytes | None]) -> AsyncIterator[ScriptedServer]:
        """A running server. `reply` is given each head; None closes the connection."""
        self = cls(reply)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()
