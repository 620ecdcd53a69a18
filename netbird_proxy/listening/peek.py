"""Detection of TLS or plain HTTP by the first byte of a connection, independent of the port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from netbird_proxy.listening.connections import Capacity, Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.tls import ServerTls, server_tls

TLS_HANDSHAKE = 0x16
"""First byte (content type) of every TLS connection. No HTTP method begins with it."""


class Peek(asyncio.Protocol):
    """Waits for a connection's first byte, then passes the connection to the TLS or HTTP protocol.

    A connection without a first byte within the head timeout is closed; other connections do not wait for it. The
    connection is counted from its beginning: first under this object, and after a TLS handshake under its protocol.
    """

    def __init__(self, connections: Connections, tls: ServerTls | None) -> None:
        """Args:
        tls: certificates; with None, TLS connections are closed and only plain HTTP is served.
        """
        self._connections = connections
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.capacity = Capacity.YES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.capacity = self._connections.enter(self, transport.get_extra_info("peername"))
        if self._connections.stopping:
            self._transport.close()
            return
        if self.capacity is not Capacity.YES:
            # The client may speak TLS, so a refusal in plain HTTP cannot be sent.
            self._transport.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._connections.limits.head_timeout, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._connections.closed(self)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._stop_waiting()
        http = Http1Protocol(self._connections, place=self)
        if data[0] != TLS_HANDSHAKE:
            transport.set_protocol(http)
            http.connection_made(transport)
            http.data_received(data)
            return
        if self._tls is None:
            self._connections.count("tls_without_certificate")
            transport.abort()
            return
        secure = server_tls(
            http,
            self._tls,
            handshake_timeout=self._connections.limits.head_timeout,
            ended=lambda: self._connections.closed(self),
        )
        transport.set_protocol(secure)
        secure.connection_made(transport)
        _feed(secure.get_buffer, secure.buffer_updated, data)

    def stop(self) -> None:
        """No request was begun on this connection, so it ends at once."""
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _feed(get_buffer: Callable[[int], memoryview], updated: Callable[[int], None], data: bytes) -> None:
    """Pass bytes that were already read to a protocol that reads into its own buffers."""
    while data:
        buffer = get_buffer(len(data))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        updated(size)
        data = data[size:]
