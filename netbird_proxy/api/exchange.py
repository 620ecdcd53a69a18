"""One request with its response: the record that the app makes, the pipeline writes, and steps read.

`Exchange` is the only mutable record of the request path. Steps get it typed as `ExchangeView`, whose members are
read-only, so that mypy holds "one writer a field". The heads and the seam between pipeline and dialing stand here too.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from netbird_proxy.api.forwarded import Forwarded
from netbird_proxy.api.headers import FOLDED, ByName, Headers, RawHeader, is_reserved
from netbird_proxy.api.model import Deny, ExchangeId, Identity, Kind, Origin, RouteSpec, Upstream

if TYPE_CHECKING:
    from netbird_proxy.api.errors import ExchangeError


@dataclass(frozen=True, slots=True)
class TrailEntry:
    """One thing that was decided, for `explain`: `authenticate private_service: deny not_in_group`."""

    stage: str
    plugin: str
    verdict: str
    reason: str = ""
    facts: Mapping[str, str] | None = None


@dataclass(slots=True)
class Try:
    """One attempt at an upstream. Times are `time.monotonic_ns`; zero means that point was not reached."""

    upstream: Upstream
    started_ns: int
    connected_ns: int = 0
    head_ns: int = 0
    ended_ns: int = 0
    reused: bool = False
    status: int = 0
    error: str = ""


class ExchangeView(Protocol):
    """What a step sees of an exchange: everything, and nothing to write but notes."""

    @property
    def id(self) -> ExchangeId: ...
    @property
    def kind(self) -> Kind:
        """`websocket` where the client asks for an upgrade, to that protocol or another; else `http`."""

    @property
    def asked_again(self) -> bool:
        """It is under way, and the proxy wants to know whether it may go on. Its caller did nothing to cause this."""

    @property
    def origin(self) -> Origin | None:
        """None when the application is embedded in a server that is not ours: an untrusted host socket."""

    @property
    def method(self) -> str: ...
    @property
    def scheme(self) -> str:
        """`http` or `https`, by the connection; forwarded headers never decide it."""

    @property
    def host(self) -> str:
        """Folded: lower case, no port, no trailing dot, IDNA."""

    @property
    def authority(self) -> bytes:
        """The Host field as the client sent it, port included."""

    @property
    def raw_path(self) -> bytes:
        """The bytes that were matched and will be forwarded; never decoded."""

    @property
    def query(self) -> bytes: ...
    @property
    def http_version(self) -> str: ...
    @property
    def headers(self) -> Headers:
        """The client's head without reserved names and without names that a plugin owns on this route."""

    @property
    def client_address(self) -> str:
        """Who is calling, for restrictions and logs: the socket's peer, or what a trusted proxy in front says."""

    @property
    def forwarded(self) -> Forwarded | None:
        """What a trusted proxy in front says; None where the connection's own peer is no such proxy."""

    @property
    def route(self) -> RouteSpec | None: ...
    @property
    def identity(self) -> Identity | None: ...
    @property
    def denial(self) -> Deny | None: ...
    @property
    def error(self) -> ExchangeError | None: ...
    @property
    def status(self) -> int:
        """What the client was answered; 0 until the head is decided."""

    @property
    def bytes_received(self) -> int:
        """Request body bytes read so far."""

    @property
    def bytes_sent(self) -> int:
        """Response body bytes handed to the client so far."""

    @property
    def started_ns(self) -> int:
        """`time.monotonic_ns` when the head was complete."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch when the head was complete."""

    @property
    def ended_ns(self) -> int:
        """`time.monotonic_ns` when the answer was complete or given up; 0 before."""

    @property
    def tries(self) -> list[Try]: ...
    @property
    def trail(self) -> list[TrailEntry]: ...
    @property
    def notes(self) -> Mapping[str, object]: ...
    @property
    def body(self) -> bytes | None:
        """The buffered request body, only in a step that declared `body_bytes`."""

    def note(self, key: str, value: object) -> None:
        """Leave a fact for later stages. KeyError for a key that no loaded plugin declared in `PluginInfo.notes`."""


OBSERVED = "core.observed"
"""The core's own note: what guards that only observe would have refused, as `plugin:code`, apart by blanks."""


class Exchange:
    """The record itself, written by the app (arrival), the pipeline (decisions) and the relay (bytes)."""

    __slots__ = (
        "allowed_notes",
        "asked_again",
        "authority",
        "body",
        "bytes_received",
        "bytes_sent",
        "client_address",
        "denial",
        "ended_ns",
        "error",
        "forwarded",
        "headers",
        "host",
        "http_version",
        "id",
        "identity",
        "kind",
        "method",
        "notes",
        "origin",
        "query",
        "raw_path",
        "route",
        "scheme",
        "started_at",
        "started_ns",
        "status",
        "trail",
        "tries",
    )

    def __init__(
        self,
        *,
        id: ExchangeId,  # noqa: A002 - it is the exchange's id
        origin: Origin | None,
        method: str,
        scheme: str,
        host: str,
        authority: bytes,
        raw_path: bytes,
        query: bytes,
        http_version: str,
        headers: Headers,
        client_address: str,
        allowed_notes: frozenset[str] = frozenset(),
        kind: Kind = "http",
        asked_again: bool = False,
    ) -> None:
        self.id = id
        self.kind = kind
        self.asked_again = asked_again
        self.origin = origin
        self.method = method
        self.scheme = scheme
        self.host = host
        self.authority = authority
        self.raw_path = raw_path
        self.query = query
        self.http_version = http_version
        self.headers = headers
        self.client_address = client_address
        self.allowed_notes = allowed_notes
        self.forwarded: Forwarded | None = None  # app, on arrival
        self.route: RouteSpec | None = None  # app, after the match
        self.identity: Identity | None = None  # pipeline, authenticate
        self.denial: Deny | None = None  # pipeline
        self.error: ExchangeError | None = None  # pipeline
        self.status = 0  # pipeline, with the response head
        self.bytes_received = 0  # relay
        self.bytes_sent = 0  # relay
        self.body: bytes | None = None  # pipeline, for a step with body_bytes
        self.tries: list[Try] = []  # relay
        self.trail: list[TrailEntry] = []  # pipeline
        self.notes: dict[str, object] = {}  # steps, through note()
        self.started_ns = time.monotonic_ns()
        self.started_at = time.time()
        self.ended_ns = 0  # pipeline, before observe

    def note(self, key: str, value: object) -> None:
        if key not in self.allowed_notes:
            raise KeyError(f"note {key!r} is not declared by any loaded plugin")
        self.notes[key] = value


_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SENT: ByName[bytes] = ByName(lambda name: name.lower() if _TOKEN.fullmatch(name) else b"")
"""Name → as it is sent; empty for what is no name."""


_FOLD = FOLDED.__getitem__
_NAME = itemgetter(0)
_CR, _LF, _NUL = b"\r\n\0"  # numbers: bytes in bytes makes CPython raise and drop a TypeError first


Judged = dict[tuple[str, tuple[bytes, ...]], frozenset[bytes]]
"""Who asked for which names, and what they fold to: only what was found to be theirs."""
_JUDGED_LIMIT = 256


class NotTheOwner(Exception):
    """A transform set a header that is the core's or another plugin's on this route."""


class OutgoingHead:
    """The request head that goes to the upstream, as one transform may change it.

    Names that another plugin owns, and `x-netbird-*` names that nobody owns, raise NotTheOwner. Names may be given in
    any case and are sent in lower case. Method, target and owner are fixed: what was authorized is what is sent.
    """

    __slots__ = ("_fields", "_judged", "_method", "_owner", "_owners", "_target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        fields: list[RawHeader],
        owners: Mapping[bytes, str],
        owner: str = "",
        judged: Judged | None = None,
    ) -> None:
        """Args:
        fields: changed in place, by the methods of this object alone.
        owners: folded name → plugin id.
        owner: id of the plugin whose transform gets this object.
        judged: what was found under these owners before, for heads of one route to share.
        """
        self._method = method
        self._target = target
        self._fields = fields
        self._owners = owners
        self._owner = owner
        self._judged = {} if judged is None else judged

    @property
    def method(self) -> bytes:
        return self._method

    @property
    def target(self) -> bytes:
        """Path and query, as they stand on the request line."""
        return self._target

    @property
    def headers(self) -> tuple[RawHeader, ...]:
        """The fields as they stand now, in order. A copy."""
        return tuple(self._fields)

    def get(self, name: bytes) -> bytes | None:
        name = name.lower()
        for key, value in self._fields:
            if key == name:
                return value
        return None

    def set(self, name: bytes, value: bytes) -> None:
        """Put one line of this name where there may be none or several. ValueError for bytes a field cannot carry."""
        self.replace((name,), ((name, value),))

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line. ValueError for bytes a field cannot carry."""
        self._check(name)
        self._append(((name, value),))

    def delete(self, *names: bytes) -> None:
        """Drop every line that folds to one of these names."""
        self.replace(names, ())

    def replace(self, names: tuple[bytes, ...], lines: Sequence[RawHeader]) -> None:
        """Put these lines, each of one of the names, where there may be others of any of them.

        `set` and `delete` for several names in one go. ValueError for a line of another name, and as in `set`.
        """
        folded = self._judged.get((self._owner, names)) or self._judge(names)
        # All of the search is in C: every owner does this on every head, and nearly never finds anything.
        if not folded.isdisjoint(map(_FOLD, map(_NAME, self._fields))):
            self._fields[:] = [pair for pair in self._fields if FOLDED[pair[0]] not in folded]
        for line in lines:
            if FOLDED[line[0]] not in folded:
                raise ValueError(f"{line[0]!r} is none of the names that were to be replaced")
        self._append(lines)

    def set_or_delete(self, name: bytes, value: bytes | None) -> None:
        """The one thing an owner may do: say it, or make sure that nobody does."""
        if value is None:
            self.delete(name)
        else:
            self.set(name, value)

    def _append(self, lines: Sequence[RawHeader]) -> None:
        for name, value in lines:
            if not isinstance(value, bytes):
                raise TypeError(f"the value of header {name!r} is {type(value).__name__}: write it in bytes")
            sent = _SENT[name]
            if not sent or _CR in value or _LF in value or _NUL in value:
                raise ValueError(f"header {name!r} cannot carry its value")
            self._fields.append((sent, value))

    def _judge(self, names: tuple[bytes, ...]) -> frozenset[bytes]:
        """The folded names, if they are all this owner's to change. A plugin mostly names the same ones each time."""
        folded = frozenset([self._check(name) for name in names])
        if len(self._judged) < _JUDGED_LIMIT:
            self._judged[self._owner, names] = folded
        return folded

    def _check(self, name: bytes) -> bytes:
        """The folded name, if it is this owner's to change."""
        if not isinstance(name, bytes):
            raise TypeError(f"the header name {name!r} is {type(name).__name__}: write it in bytes")
        folded = FOLDED[name]
        owner = self._owners.get(folded)
        if owner is None:
            if is_reserved(name):
                raise NotTheOwner(f"{name.decode('latin-1')} is reserved and {self._owner or 'nobody'} does not own it")
        elif owner != self._owner:
            raise NotTheOwner(f"{name.decode('latin-1')} is owned by {owner}, not by {self._owner or 'nobody'}")
        return folded


@dataclass(slots=True)
class ResponseHead:
    """The response head on its way to the client; names in lower case."""

    status: int
    headers: list[RawHeader]


class BodyLengthMismatch(Exception):
    """The request body is not as long as its head says: sent on, it would let one request end inside another."""


class UpstreamAnswer(Protocol):
    """An upstream's response, its head complete."""

    status: int
    reason: bytes
    headers: list[RawHeader]
    """Lower-case names, in order, hop-by-hop fields still in."""
    trailers: list[RawHeader]
    """Complete once `read` has returned `b""`."""
    complete: bool
    """Whether all of it has come; what nobody has read yet is still to be read."""

    async def read(self) -> bytes:
        """The next piece of the body as it came, `b""` at its end. Raises UpstreamClosed on a truncated body."""


Informational = Callable[[int, list[RawHeader]], Awaitable[None]]


class UpstreamConnection(Protocol):
    """One upstream connection while one exchange has it. It speaks HTTP/1.1, one exchange at a time.

    Call order: `send_head`, any number of `send_body`, at most one `finish_body` (not for requests without a body),
    and `answer` at any time after `send_head` (an upstream may answer early). Then the pool's `release`, or `abort`;
    either gives the place back, and after the one the other does nothing. One task may send while another reads.

    After a 101 to a `send_head(…, upgrade=True)` the stream is raw both ways: `answer.read` gives what comes, `b""`
    when the upstream half-closed; `send_body(data, chunked=False)` sends; `finish_body([], chunked=False)` half-closes
    where the transport can (TLS cannot).

    Attributes:
        half_closes: whether that `finish_body` tells the upstream anything.
    """

    reused: bool
    """It has carried an exchange before, so that its closing before an answer's first byte may be a race."""

    @property
    def half_closes(self) -> bool: ...

    def send_head(self, head: bytes, *, method: bytes, has_body: bool, upgrade: bool = False) -> None:
        """Write the complete head, blank line included. `method` decides how the answer is framed.

        `upgrade` says that the head asks for one; without it a 101 is a ProtocolViolation. Never raises for a
        connection that was lost meanwhile: `answer` does, so that there is one place that decides about a retry.
        """

    async def send_body(self, data: bytes, *, chunked: bool) -> None:
        """Write body bytes, framed if `chunked`; waits while the transport is above its high-water mark.

        Raises UpstreamClosed (or what else ended the connection) when no more can be sent; an early answer may
        nevertheless have come: ask `answer` before failing the exchange. BodyLengthMismatch, with the connection
        aborted, for more bytes than the head's Content-Length.
        """

    def finish_body(self, trailers: list[RawHeader], *, chunked: bool) -> None:
        """The request is complete. BodyLengthMismatch, with the connection aborted, if bytes are missing."""

    async def answer(self, informational: Informational | None = None) -> UpstreamAnswer:
        """Wait for the final head; 1xx heads before it go to `informational`.

        Raises:
            UpstreamClosed: it closed first; `nothing_received` tells whether a byte had come.
            ProtocolViolation, HeadTimeout.
        """

    @property
    def nothing_received(self) -> bool:
        """Whether not one byte of the answer has come."""

    def abort(self) -> None:
        """Reset the connection now. Idempotent. A request body that was begun never looks complete upstream."""


class Pool(Protocol):
    """Connections to one upstream of one route."""

    async def acquire(self, *, fresh: bool = False, source: str = "") -> UpstreamConnection:
        """A connection nobody else uses: an idle one, or a new one through the route's dialer.

        `fresh` asks for a new one (for the single retry). `source` is the client that it is for, among whom places
        are shared out; empty for nobody in particular. Cancellation gives back what was acquired.

        Raises:
            UpstreamError: one of its dial failures, UpstreamOverloaded when too many are in flight, or too many of
                this source.
        """

    def release(self, connection: UpstreamConnection) -> None:
        """Give it back. It is kept only if its exchange ended cleanly on both sides, else closed."""


Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ORIGIN_STATE = "netbird_proxy.origin"
"""Key in `scope["state"]` under which a registered listener puts its `Origin`."""

CONNECTION_EXTENSION = "netbird_proxy.connection"
"""Key in `scope["extensions"]`: our own protocol's further abilities, see `DownstreamConnection`."""


class RawDownstream(Protocol):
    """A client's connection after its 101: bytes both ways. One task may write while another reads."""

    @property
    def gone(self) -> bool:
        """It is closed; what had come before may still be read."""

    async def read(self) -> bytes:
        """The next piece as it came, beginning with what stood behind the request; `b""` when there is no more."""

    async def write(self, data: bytes) -> None:
        """Waits while the transport is above its high-water mark. Raises ConnectionResetError for a closed one."""

    def finish(self) -> bool:
        """We send no more. Whether the client is told so while it still sends; TLS cannot say it."""

    def close(self) -> None:
        """Close, once everything that was written is out. Idempotent."""


class DownstreamConnection(Protocol):
    """What our own listening protocol can do beyond ASGI; it stands in `scope["extensions"]`.

    Under it the task that runs the application is cancelled when the client has gone (`gone` is then True), request
    trailers come as `trailers` in the last `http.request` message, and response trailers go as ASGI's own
    `http.response.trailers`.
    """

    gone: bool
    task: asyncio.Task[None] | None
    """What runs the application for this request; None once it has returned."""

    has_body: bool
    """Whether a request body follows the head; if not, `receive` need not be called."""

    upgrade: bool
    """Whether the client asks for another protocol in a form that may be granted: HTTP/1.1, and no body."""

    def switch(self, headers: list[RawHeader]) -> RawDownstream:
        """Answer 101 instead of sending a response. `headers` have the `Upgrade` field; `Connection` is added.

        Raises ConnectionResetError when the client has gone.
        """

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Send an informational (1xx) head now."""

    def answer_whole(self, status: int, headers: list[RawHeader], body: bytes) -> bool:
        """Send an answer that is all there, as `send` would; False, with nothing done, where `send` must do it.

        For whoever holds this connection's own `send`: a middleware's must see the messages.
        """

    def abort(self) -> None:
        """Close the downstream connection without completing the response."""


__all__ = [
    "CONNECTION_EXTENSION",
    "ORIGIN_STATE",
    "ASGIApp",
    "BodyLengthMismatch",
    "DownstreamConnection",
    "Exchange",
    "ExchangeView",
    "Informational",
    "Message",
    "NotTheOwner",
    "OutgoingHead",
    "Pool",
    "RawDownstream",
    "Receive",
    "ResponseHead",
    "Scope",
    "Send",
    "TrailEntry",
    "Try",
    "UpstreamAnswer",
    "UpstreamConnection",
]
