"""A client in process: one request to an ASGI application as our own listener, or a foreign server, would bring it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Origin
from netbird_proxy.asgi import CONNECTION_EXTENSION, ORIGIN_STATE, ASGIApp, Message
from netbird_proxy.testing.makers import HOST


@dataclass(slots=True)
class Answer:
    """The answer that the client received. `complete` is False if the stream was cut."""

    status: int = 0
    headers: list[RawHeader] = field(default_factory=list)
    body: bytes = b""
    trailers: list[RawHeader] | None = None
    informational: list[tuple[int, list[RawHeader]]] = field(default_factory=list)
    complete: bool = False
    aborted: bool = False
    messages: list[Message] = field(default_factory=list)

    def get(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class RawClient:
    """A client's end of an upgraded connection: it sends its pieces, then ends. The answer's body has what it got.

    Attributes:
        gone: set by a test to close the connection properly.
        half_closes: true if the connection supports a half-close.
        all_sent: set once the proxy has read every piece.
        hold: the client does not end before this is set.
    """

    def __init__(self, answer: Answer, pieces: list[bytes]) -> None:
        self._answer = answer
        self._pieces = pieces
        self.gone = False
        self.half_closes = True
        self.finished = False
        self.all_sent = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()

    async def read(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        self.all_sent.set()
        await self.hold.wait()
        return b""

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ConnectionResetError("the client has gone")
        self._answer.body += data

    def finish(self) -> bool:
        self.finished = True
        return self.half_closes and not self.gone

    def close(self) -> None:
        self._answer.complete = True


class Client:
    """One request under way.

    Args:
        body: its pieces; None for a request without a body.
        own: as our own listener brings it, with its extension; else as a foreign ASGI server does.
        leaves: the client is gone once the body's pieces are through.
        upgrade: the listener found a request for an upgrade that may be granted; `body` is then what the client says
            behind the 101.
    """

    def __init__(
        self,
        method: str = "GET",
        target: str = "/",
        *,
        host: str | None = HOST,
        headers: Iterable[RawHeader] = (),
        body: Iterable[bytes] | None = None,
        trailers: Iterable[RawHeader] = (),
        origin: Origin | None = None,
        own: bool = True,
        scheme: str = "http",
        http_version: str = "1.1",
        leaves: bool = False,
        upgrade: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        path, mark, query = target.encode("latin-1").partition(b"?")
        self.answer = Answer()
        self.has_body = body is not None and not upgrade
        self.empty_query = bool(mark) and not query
        self.upgrade = upgrade
        self.raw: RawClient | None = None
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.received = 0
        self._pieces = list(body or ())
        self._trailers = list(trailers)
        self._ended = False
        self._leaves = leaves
        self._left = asyncio.Event()
        fields = [(name.lower(), value) for name, value in headers]
        if host is not None:
            fields.insert(0, (b"host", host.encode("latin-1")))
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": http_version,
            "method": method,
            "scheme": scheme,
            "path": target.partition("?")[0],
            "raw_path": path,
            "query_string": query,
            "headers": fields,
            "client": ("203.0.113.9", 50000),
            "server": ("127.0.0.1", 8080),
            "state": {} if origin is None else {ORIGIN_STATE: origin},
            "extensions": {CONNECTION_EXTENSION: self} if own else {},
            **(extra or {}),
        }

    async def ask(self, app: ASGIApp) -> Answer:
        """Run the application to its end."""
        self.task = asyncio.current_task()
        await app(self.scope, self.receive, self.send)
        return self.answer

    async def receive(self) -> Message:
        self.received += 1
        if self._pieces:
            piece = self._pieces.pop(0)
            last = not self._pieces and not self._leaves
            self._ended = self._ended or last
            message: Message = {"type": "http.request", "body": piece, "more_body": not last}
            if last and self._trailers:
                message["trailers"] = self._trailers
            return message
        if not self._ended and not self._leaves:
            self._ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if not self._leaves:
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answer.messages.append(message)
        kind = message["type"]
        if kind == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = list(message["headers"])
        elif kind == "http.response.body":
            self.answer.body += message.get("body", b"")
            self.answer.complete = not message.get("more_body", False)
        elif kind == "http.response.trailers":
            self.answer.trailers = list(message["headers"])

    def leave(self) -> None:
        """The client goes away now, as its server tells the application."""
        self.gone = True
        self._left.set()

    # The extensions of our own listener -------------------------------------------------------------------------------

    def switch(self, headers: list[RawHeader]) -> RawClient:
        if self.gone:
            raise ConnectionResetError("the client has gone")
        assert self.upgrade, "switched without being asked"
        self.answer.status = 101
        self.answer.headers = list(headers)
        self.raw = RawClient(self.answer, self._pieces)
        return self.raw

    def answer_whole(self, status: int, headers: list[RawHeader], body: bytes) -> bool:
        return False  # a transcript states the messages

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        self.answer.informational.append((status, headers))

    def abort(self) -> None:
        self.answer.aborted = True


async def ask(app: ASGIApp, method: str = "GET", target: str = "/", **fields: Any) -> Answer:
    """One request and its answer. See `Client` for what it may say."""
    return await Client(method, target, **fields).ask(app)
