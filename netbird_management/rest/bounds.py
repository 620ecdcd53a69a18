"""Limits on clients that have not authenticated yet: connections, duration and size of a request.

uvicorn's default parser, httptools, buffers request heads of any length; h11 has a limit, so the host uses h11.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from netbird_management.rest.errors import error_response
from netbird_management.rest.upgrades import Upgrades

Count = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class RestLimits:
    """Limits of the REST port.

    Attributes:
        connections: maximum number of open connections; a further one is closed at once.
        head_bytes: maximum size of a request's head; beyond it 400.
        body_bytes: maximum size of a request's body; beyond it 400.
        request_seconds: maximum time until a request is complete, from its first byte, or from the start of the
            connection for the first request; on expiry the connection is closed.
    """

    connections: int = 1024
    head_bytes: int = 65_536
    body_bytes: int = 1 << 20
    request_seconds: float = 30.0


def protocol(limits: RestLimits, count: Count, upgrades: Upgrades | None = None) -> type[H11Protocol]:
    """uvicorn's h11 protocol with the limits on connections and on the duration of a request, and with the plugins'
    WebSockets."""
    taken = upgrades or Upgrades()

    class Bounded(H11Protocol):
        _late: asyncio.TimerHandle | None = None
        _given_away = False

        def _should_upgrade(self) -> bool:
            """True for a WebSocket at a plugin's path; any other request to upgrade is answered as if it were none."""
            return self._get_upgrade() == b"websocket" and self.scope["path"] in taken

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._given_away = True
            self._watch(False)
            self.connections.discard(self)
            head = b"".join((event.method, b" ", event.target, b" HTTP/1.1\r\n"))
            head += b"".join(b"%s: %s\r\n" % (name, value) for name, value in self.headers) + b"\r\n"
            peer = self.client[0] if self.client else ""
            forwarded = [value.decode("latin-1") for name, value in self.headers if name == b"x-forwarded-for"]
            taken.give(
                self.scope["path"], self.transport, head + self.conn.trailing_data[0], peer=peer, forwarded=forwarded
            )

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                count("rest_connections_refused")
                transport.abort()
                return
            self._watch(True)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch(False)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch(self._is_awaited())

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch(self._is_awaited())

        def _is_awaited(self) -> bool:
            """True while a request has begun to arrive and is not complete."""
            state = self.conn.their_state
            return state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))

        def _watch(self, awaited: bool) -> None:
            if not awaited and self._late is not None:
                self._late.cancel()
                self._late = None
            elif awaited and self._late is None and not (self._given_away or self.transport.is_closing()):
                self._late = self.loop.call_later(limits.request_seconds, self._give_up)

        def _give_up(self) -> None:
            count("rest_requests_late")
            self.transport.abort()

    return Bounded


def with_bounded_bodies(app: ASGIApp, limits: RestLimits, count: Count) -> ASGIApp:
    """Answers 400 to a request whose body exceeds the limit, without reading the rest of it."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        size = 0
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > limits.body_bytes:
                count("rest_bodies_refused")
                await error_response(400, "the request body is too large")(scope, receive, send)
                return

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limits.body_bytes:
                count("rest_bodies_refused")
                raise HTTPException(400, "the request body is too large")
            return message

        await app(scope, counted, send)

    return respond
