"""The interface between listeners and the application: ASGI, and the extensions of our own listeners."""

from __future__ import annotations

import asyncio
from typing import Protocol

from netbird_proxy.api.endpoints import ASGIApp, Message, Receive, Scope, Send
from netbird_proxy.api.headers import RawHeader

ORIGIN_STATE = "netbird_proxy.origin"
"""Key in `scope["state"]` under which a registered listener puts its `Origin`."""

CONNECTION_EXTENSION = "netbird_proxy.connection"
"""Key in `scope["extensions"]`: our own protocol's further abilities, see `DownstreamConnection`."""


class RawDownstream(Protocol):
    """A client's connection after its 101: bytes both ways. One task may write while another reads."""

    @property
    def gone(self) -> bool:
        """True once the connection is closed; bytes that arrived before can still be read."""

    async def read(self) -> bytes:
        """The next piece as it arrived, beginning with the bytes behind the request; `b""` at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes. Waits while the transport is above its high-water mark. ConnectionResetError if it is closed."""

    def finish(self) -> bool:
        """End the sending side. Returns True if the transport supports a half-close (TLS does not)."""

    def close(self) -> None:
        """Close the connection once all written data was sent. Idempotent."""


class DownstreamConnection(Protocol):
    """Abilities of our own listening protocol beyond ASGI, in `scope["extensions"]`.

    Under it the task that runs the application is cancelled when the client has gone (`gone` is then True), request
    trailers come as `trailers` in the last `http.request` message, and response trailers go as ASGI's own
    `http.response.trailers`.
    """

    gone: bool
    task: asyncio.Task[None] | None
    """The task that runs the application for this request; None once it has returned."""

    has_body: bool
    """True if a request body follows the head; else `receive` need not be called."""

    empty_query: bool
    """True if the target ends with a `?` that begins an empty query, which the scope does not show."""

    upgrade: bool
    """True if the client requests another protocol in a form that may be granted: HTTP/1.1, without a body."""

    def switch(self, headers: list[RawHeader]) -> RawDownstream:
        """Answer 101 instead of sending a response. `headers` have the `Upgrade` field; `Connection` is added.

        ConnectionResetError if the client has gone.
        """

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Send an informational (1xx) head now."""

    def answer_whole(self, status: int, headers: list[RawHeader], body: bytes) -> bool:
        """Send a complete answer, as `send` would. Returns False, and sends nothing, if `send` is needed.

        Only for a caller that has this connection's own `send`: a middleware must see the messages.
        """

    def abort(self) -> None:
        """Close the downstream connection without completing the response."""


__all__ = [
    "CONNECTION_EXTENSION",
    "ORIGIN_STATE",
    "ASGIApp",
    "DownstreamConnection",
    "Message",
    "RawDownstream",
    "Receive",
    "Scope",
    "Send",
]
