"""The seam between the pipeline and upstreams: a pool, its connections, and an upstream's answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from netbird_proxy.api.headers import RawHeader


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
