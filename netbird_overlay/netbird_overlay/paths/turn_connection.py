"""Connections to TURN servers on the loop: datagrams, or a stream with or without TLS, with the same face."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from netbird_overlay.paths.stun_servers import parse_authority
from netbird_overlay.stun.encoding import BadStun
from netbird_overlay.stun.turn_messages import frame_length

Transport = Literal["udp", "tcp", "tls"]


@dataclass(frozen=True, slots=True)
class TurnAddress:
    """A server by name or address, and how it is reached."""

    host: str
    port: int
    transport: Transport

    @property
    def is_stream(self) -> bool:
        return self.transport != "udp"


class TurnConnection(Protocol):
    """A connection to a server."""

    def send(self, datagram: bytes) -> None:
        """Send a message. It is lost if the connection cannot take it now."""

    def close(self) -> None:
        """Close after what was sent last."""


def parse_turn_uri(uri: str) -> TurnAddress | None:
    """Return the server of `turn:host:port` or `turns:host:port` (RFC 7065), with `?transport=udp` or `=tcp`.

    None for anything else, and for DTLS, which is not supported.
    """
    head, _, query = uri.partition("?")
    scheme = head.partition(":")[0]
    if scheme not in ("turn", "turns") or query not in ("", "transport=udp", "transport=tcp"):
        return None
    if scheme == "turns" and query == "transport=udp":
        return None
    target = parse_authority(scheme, head, default_port=5349 if scheme == "turns" else 3478)
    if target is None:
        return None
    transport: Transport = "tls" if scheme == "turns" else "tcp" if query == "transport=tcp" else "udp"
    return TurnAddress(*target, transport)


async def connect_turn(
    address: TurnAddress,
    on_message: Callable[[bytes], None],
    on_lost: Callable[[str], None],
    *,
    tls: ssl.SSLContext | None = None,
) -> TurnConnection:
    """Connect to a server; only this server's datagrams are received.

    Args:
        on_message: called with each message of the server.
        on_lost: called with a reason once the stream has ended. Datagrams have no end.
        tls: verifies the certificate of a `turns:` server; None for the system's roots.

    Raises:
        OSError: no address, or no connection.
    """
    loop = asyncio.get_running_loop()
    if not address.is_stream:
        _, datagrams = await loop.create_datagram_endpoint(
            lambda: _Datagrams(on_message), remote_addr=(address.host, address.port)
        )
        return datagrams
    context = (tls or ssl.create_default_context()) if address.transport == "tls" else None
    _, stream = await loop.create_connection(
        lambda: _Stream(on_message, on_lost), address.host, address.port, ssl=context
    )
    return stream


class _Flow:
    """Back-pressure of a connection: while its buffer (64 KiB) is full, datagrams are dropped as in a network."""

    def __init__(self) -> None:
        self.is_paused = False

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False


class _Datagrams(_Flow, asyncio.DatagramProtocol):
    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        super().__init__()
        self._on_message = on_message
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._on_message(data)

    def send(self, datagram: bytes) -> None:
        if self._transport is not None and not self.is_paused:
            self._transport.sendto(datagram)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Stream(_Flow, asyncio.Protocol):
    """Cuts the stream into messages; a stream that has lost its frames ends."""

    def __init__(self, on_message: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        super().__init__()
        self._on_message, self._on_lost = on_message, on_lost
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        at = 0
        try:
            while len(self._received) - at >= 4:
                size = frame_length(bytes(self._received[at : at + 4]))
                if len(self._received) - at < size:
                    break
                self._on_message(bytes(self._received[at : at + size]))
                at += size
        except BadStun as exc:
            self._on_lost(str(exc))
            self.close()
            at = len(self._received)
        del self._received[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(str(exc) if exc is not None else "the server closed the connection")

    def send(self, datagram: bytes) -> None:
        if self._transport is not None and not self.is_paused:
            self._transport.write(datagram)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
