"""Sends one HTTP/1.1 request through a tunnel, for `netbird-peer get`.

It is hand-made, because HTTP libraries open their own sockets, and this request needs the overlay's transport on both
event loops.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools

from netbird_peer.pipe import Dial

CHUNK_BYTES = 64 << 10
HANDSHAKE_TIMEOUT = 10


class FetchError(Exception):
    """The answer is missing, incomplete or malformed."""


@dataclass(frozen=True, slots=True)
class Request:
    """The request to send.

    Attributes:
        host: the URL's host without brackets; the certificate must name it.
        target: the URL's path and query, unchanged.
        headers: the fields after Host, in order.
    """

    secure: bool
    host: str
    port: int
    target: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @classmethod
    def of(cls, url: str, *, method: str = "", headers: Sequence[str] = (), body: bytes | None = None) -> Request:
        """Build a request from the command line's arguments. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError(f"{url!r} is not an http:// or https:// address")
        if any(ord(character) <= 32 or ord(character) == 127 for character in url):
            raise ValueError("the URL must not contain spaces or control characters")
        secure = parts.scheme == "https"
        fields = []
        for header in headers:
            name, colon, value = header.partition(":")
            if not colon or not name.strip() or any(character in header for character in "\r\n\0"):
                raise ValueError(f"{header!r} is not a header such as `Name: value`")
            fields.append((name.strip(), value.strip()))
        if body is not None and not any(name.lower() == "content-type" for name, _ in fields):
            fields.append(("Content-Type", "application/x-www-form-urlencoded"))
        return cls(
            secure=secure,
            host=parts.hostname,
            port=parts.port or (443 if secure else 80),
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            method=method or ("GET" if body is None else "POST"),
            headers=tuple(fields),
            body=body or b"",
        )

    def encode(self) -> bytes:
        authority = f"[{self.host}]" if ":" in self.host else self.host
        if self.port != (443 if self.secure else 80):
            authority += f":{self.port}"
        names = {name.lower() for name, _ in self.headers}
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        if "host" not in names:
            lines.append(f"Host: {authority}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.body and "content-length" not in names:
            lines.append(f"Content-Length: {len(self.body)}")
        if "connection" not in names:
            lines.append("Connection: close")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


@dataclass(slots=True)
class Response:
    """The answer's head; the body was passed to `on_body`."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)


class _Parser:
    """httptools' callbacks."""

    def __init__(self, response: Response, on_head: Callable[[Response], None], on_body: Callable[[bytes], None]):
        self._response = response
        self._on_head = on_head
        self.on_body = on_body
        self._parser = httptools.HttpResponseParser(self)
        self.head = self.complete = False

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            raise FetchError(f"not an HTTP answer: {exc}") from exc

    def ends_with_connection(self) -> bool:
        """True if the body has no length of its own and ends with the connection."""
        names = {name.lower() for name, _ in self._response.headers}
        return self.head and not names & {"content-length", "transfer-encoding"}

    def on_status(self, reason: bytes) -> None:
        self._response.reason = reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head:  # later fields are trailers
            self._response.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()
        if self._response.status >= 200:
            self.head = True
            self._on_head(self._response)

    def on_message_complete(self) -> None:
        if self._response.status >= 200:
            self.complete = True
        else:
            self._response.headers.clear()


async def fetch(
    dial: Dial,
    request: Request,
    *,
    tls: ssl.SSLContext | None,
    timeout: float,
    on_head: Callable[[Response], None],
    on_body: Callable[[bytes], None],
) -> Response:
    """Send a request to its host, and pass on the answer as it arrives.

    Raises:
        ConnectError: the host could not be dialed.
        ssl.SSLError, OSError, FetchError, TimeoutError: the exchange failed.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    streams = asyncio.StreamReaderProtocol(reader, loop=loop)
    async with asyncio.timeout(timeout):
        if tls is None:
            transport, _ = await dial(lambda: streams, request.host, request.port, timeout=timeout)
        else:
            # Not loop.start_tls, because uvloop's version accepts only uvloop's own transports.
            secured = loop.create_future()
            protocol = SSLProtocol(
                loop,
                streams,
                tls,
                secured,
                server_hostname=request.host,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )
            transport, _ = await dial(lambda: protocol, request.host, request.port, timeout=timeout)
        try:
            if tls is not None:
                await secured
            writer = asyncio.StreamWriter(_application_transport(streams, transport), streams, reader, loop)
            writer.write(request.encode())
            await writer.drain()
            return await _read(reader, on_head, on_body)
        finally:
            transport.abort()


def _application_transport(streams: asyncio.StreamReaderProtocol, plain: asyncio.Transport) -> asyncio.WriteTransport:
    """Return the transport of the TLS layer after its handshake, else the tunnel's."""
    return getattr(streams, "_transport", None) or plain


async def _read(
    reader: asyncio.StreamReader, on_head: Callable[[Response], None], on_body: Callable[[bytes], None]
) -> Response:
    response = Response()
    parser = _Parser(response, on_head, on_body)
    while not parser.complete:
        data = await reader.read(CHUNK_BYTES)
        if not data:
            if parser.ends_with_connection():
                break
            raise FetchError("the connection ended before the answer did")
        parser.feed(data)
    return response
