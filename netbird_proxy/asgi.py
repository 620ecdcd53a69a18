"""The seam between listeners and the application: ASGI, and the extensions of it that only our own listeners offer."""

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
    "DownstreamConnection",
    "Message",
    "RawDownstream",
    "Receive",
    "Scope",
    "Send",
]
