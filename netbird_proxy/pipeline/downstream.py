"""The client's side of one exchange: ASGI's two callables, the listener's extensions, and the answer's progress."""

from __future__ import annotations

from netbird_proxy.api.errors import BodyTooLarge, ClientGone
from netbird_proxy.api.headers import RawHeader
from netbird_proxy.api.model import Deny
from netbird_proxy.asgi import DownstreamConnection, Message, Receive, Send
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.response_heads import informational
from netbird_proxy.pipeline.response_transforms import ResponseTransforms


class Downstream:
    """Reads the request body of one exchange, and sends its answer to the client.

    Attributes:
        connection: the connection of this proxy's own listener; None under another ASGI server.
        started: the response head was sent. A later failure can only close the stream.
        complete: the last byte of the response was sent.
        taken: pieces of the request body that were read ahead for a step. They are sent to the upstream later.
        exhausted: the request body has been read to its end.
        trailers: the request's trailers as received; complete when `exhausted` is true.
        cut: the refusal with which an open exchange was ended from outside; None for other exchanges.
        transforms: the response transforms of the route; None without any, and before a pipeline runs.
    """

    __slots__ = (
        "complete",
        "connection",
        "cut",
        "exhausted",
        "receive",
        "send",
        "started",
        "taken",
        "trailers",
        "transforms",
    )

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
        self.transforms: ResponseTransforms | None = None

    async def start(self, exchange: Exchange, status: int, headers: list[RawHeader]) -> None:
        """Send the head of an answer of the proxy itself or of an endpoint. The forwarder sends an upstream's head."""
        if self.transforms is not None:
            headers = self.transforms.extended(exchange, status, headers)
        exchange.status = status
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def finish(self, body: bytes = b"") -> None:
        self.complete = True
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def inform(self, status: int, headers: list[RawHeader]) -> None:
        """Pass an informational head on, but not 100: the listener sends that itself when the body is first read."""
        if status != 100 and self.connection is not None:
            await self.connection.inform(status, informational(headers, self.transforms))

    async def read(self, exchange: Exchange) -> bytes:
        """Read the next piece of the request body. A piece may be empty; `exhausted` marks the end.

        Raises:
            ClientGone: the client left before the end of the body. A body that was cut must never look complete.
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
            BodyTooLarge: the body has more than `limit` bytes.
            ClientGone: see `read`.
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

        Under another ASGI server, which has no such call, the application returns with an incomplete response.
        """
        if self.connection is not None:
            self.connection.abort()
