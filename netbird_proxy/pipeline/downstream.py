"""The client's side of one exchange: ASGI's two callables, what our own listener adds, and how far the answer is."""

from __future__ import annotations

from netbird_proxy.api.errors import BodyTooLarge, ClientGone
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Deny
from netbird_proxy.asgi import DownstreamConnection, Message, Receive, Send
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.response_heads import informational


class Downstream:
    """One exchange's way back to its client.

    Attributes:
        connection: our own listening protocol; None under a foreign ASGI server.
        started: the response head went out: from here a failure can only close the stream.
        complete: the last byte of the response went out.
        taken: request body pieces that were read ahead for a step, to be replayed upstream.
        exhausted: the request body has been read to its end.
        trailers: the request's trailers as they came, complete once `exhausted`.
        cut: why the exchange was ended from outside, while it was under way.
    """

    __slots__ = ("complete", "connection", "cut", "exhausted", "receive", "send", "started", "taken", "trailers")

    def __init__(self, receive: Receive, send: Send, connection: DownstreamConnection | None) -> None:
        self.receive = receive
        self.send = send
        self.connection = connection
        self.started = False
        self.complete = False
        self.exhausted = False
        self.taken: list[bytes] = []
        self.trailers: list[RawHeader] = []
        self.cut: Deny | None = None

    async def start(self, exchange: Exchange, status: int, headers: list[RawHeader]) -> None:
        exchange.status = status
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def finish(self, body: bytes = b"") -> None:
        self.complete = True
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Pass an informational head on. Not 100: the listener says that itself, when the body is first wanted."""
        if status != 100 and self.connection is not None:
            await self.connection.inform(status, informational(headers))

    async def read(self, exchange: Exchange) -> bytes:
        """The next piece of the request body from the wire; `b""` may be an empty piece: see `exhausted`.

        Raises:
            ClientGone: it left before the body's end, which must never look like its end.
        """
        message: Message = await self.receive()
        if message["type"] != "http.request":
            raise ClientGone("the client left while its request body was on the way")
        data: bytes = message.get("body", b"")
        exchange.bytes_received += len(data)
        if not message.get("more_body", False):
            self.exhausted = True
            self.trailers = list(message.get("trailers", ()))
        return data

    async def read_ahead(self, exchange: Exchange, limit: int) -> bytes:
        """Read the whole request body and keep it for the upstream.

        Raises:
            BodyTooLarge: it has more than `limit` bytes.
            ClientGone: as `read`.
        """
        size = sum(map(len, self.taken))
        has_body = self.connection is None or self.connection.has_body
        while has_body and not self.exhausted and size <= limit:
            data = await self.read(exchange)
            if data:
                self.taken.append(data)
                size += len(data)
        if size > limit:
            raise BodyTooLarge(f"a step reads at most {limit} bytes of the request body")
        return b"".join(self.taken)

    def abort(self) -> None:
        """Close the client's connection without completing the response.

        Under a foreign server returning with an incomplete response does the same.
        """
        if self.connection is not None:
            self.connection.abort()
