"""Interfaces between the pipeline and upstreams: a pool, its connections, and an upstream's answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from netbird_proxy.api.headers import RawHeader


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Limits on an upstream's heads (including informational ones) and trailers; beyond them ProtocolViolation.

    Attributes:
        bytes: maximum size of all heads of an answer together, of its trailers, and of a chunk's line.
        lines: maximum number of fields in a head or in the trailers.
    """

    bytes: int = 65536
    lines: int = 256


class BodyLengthMismatch(Exception):
    """The request body's length differs from its Content-Length. Forwarded, it would start or swallow a request."""


class UpstreamAnswer(Protocol):
    """An upstream's response with a complete head."""

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> bytes: ...
    @property
    def headers(self) -> list[RawHeader]:
        """Fields in order, with lower-case names, including hop-by-hop fields."""

    @property
    def trailers(self) -> list[RawHeader]:
        """Complete once `read` has returned `b""`."""

    @property
    def complete(self) -> bool:
        """True once the whole answer has arrived; buffered pieces can still be read."""

    async def read(self) -> bytes:
        """The next piece of the body as it arrived, `b""` at its end. UpstreamClosed for a truncated body."""


Informational = Callable[[int, list[RawHeader]], Awaitable[None]]


class UpstreamConnection(Protocol):
    """An HTTP/1.1 connection to an upstream, as an exchange uses it. It carries one exchange at a time.

    Call order: `send_head`, any number of `send_body`, at most one `finish_body` (not for requests without a body),
    and `answer` at any time after `send_head` (an upstream may answer early). Then the pool's `release`, or `abort`;
    the first of them frees the slot, and the other one does nothing. One task may send while another reads.

    After a 101 to a `send_head(…, upgrade=True)` the stream is raw both ways: `answer.read` returns received bytes, and
    `b""` after the upstream's half-close; `send_body(data, chunked=False)` sends; `finish_body([], chunked=False)`
    half-closes if the transport supports it (TLS does not).

    Attributes:
        half_closes: true if the transport supports that half-close.
    """

    reused: bool
    """True if it carried an exchange before, so that a close before an answer's first byte may be a race."""

    @property
    def half_closes(self) -> bool: ...

    def send_head(self, head: bytes, *, method: bytes, has_body: bool, upgrade: bool = False) -> None:
        """Write the complete head, including the blank line.

        A lost connection raises in `answer` only, so that a single place decides about a retry.

        Args:
            method: the request's method, on which the framing of the answer depends.
            upgrade: the head requests an upgrade; without it a 101 is a ProtocolViolation.
        """

    async def send_body(self, data: bytes, *, chunked: bool) -> None:
        """Write body bytes, framed if `chunked`; waits while the transport is above its high-water mark.

        Raises:
            UpstreamError: the error that ended the connection. An early answer may nevertheless have arrived: call
                `answer` before failing the exchange.
            BodyLengthMismatch: more bytes than the head's Content-Length; the connection is aborted.
        """

    def finish_body(self, trailers: list[RawHeader], *, chunked: bool) -> None:
        """Complete the request. BodyLengthMismatch if bytes are missing; the connection is then aborted."""

    async def answer(self, informational: Informational | None = None) -> UpstreamAnswer:
        """Wait for the final head; 1xx heads before it go to `informational`.

        Raises:
            UpstreamClosed: the upstream closed first; `nothing_received` is true if it sent no byte before.
            ProtocolViolation, HeadTimeout.
        """

    @property
    def nothing_received(self) -> bool:
        """True if no byte of the answer has arrived."""

    def abort(self) -> None:
        """Reset the connection now. Idempotent. An unfinished request body never looks complete to the upstream."""


class Pool(Protocol):
    """Connections to an upstream."""

    async def acquire(self, *, fresh: bool = False, source: str = "") -> UpstreamConnection:
        """Take an idle connection, or open a new one through the route's dialer. Cancellation releases it.

        Args:
            fresh: open a new connection (for the single retry).
            source: the client of the exchange, among which slots are shared; empty for none.

        Raises:
            UpstreamError: a dial failure, or UpstreamOverloaded if too many exchanges, of all or this source, are open.
        """

    def release(self, connection: UpstreamConnection) -> None:
        """Return a connection. It is kept if its exchange is complete on both sides; else it is closed."""
