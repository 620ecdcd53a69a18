"""TLS towards upstreams, over any asyncio transport: a socket's or a tunnel's.

On uvloop's own transports uvloop's TLS is used, which costs less than asyncio's. All others, a tunnel's and those of
asyncio's loop, have asyncio's `SSLProtocol`: uvloop refuses foreign transports.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
import sys
from asyncio.sslproto import SSLProtocol
from typing import Any, cast

from netbird_proxy.upstreams.kernel import drain

CLOSE_TIMEOUT = 2.0
"""Seconds that a closing connection waits for the upstream's close_notify."""


@functools.lru_cache(256)
def client_context(*, skip_verify: bool = False, ca: str = "") -> ssl.SSLContext:
    """The context for upstreams, with the system's roots, with `ca` only, or without verification.

    Contexts are cached, because loading the system's roots takes about 20 ms.
    """
    context = ssl.create_default_context(cadata=ca or None)
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


class _ClientTls(SSLProtocol):
    """TLS that reads the last received bytes even if a write failed; see `drain`."""

    def connection_lost(self, exc: BaseException | None) -> None:
        transport = self._transport
        if exc is not None and transport is not None:
            drain(transport, self._feed)
        super().connection_lost(exc)

    def _feed(self, data: bytes) -> None:
        _feed_buffered(self, data)


def _feed_buffered(protocol: Any, data: bytes) -> None:
    """Pass bytes that were already read to a protocol that reads into its own buffers."""
    while data:
        buffer: memoryview = protocol.get_buffer(len(data))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


class Encrypting(asyncio.Protocol):
    """The protocol for the dialer in place of an upstream connection's: it lays TLS over the stream that it gets.

    `protocol.connection_made` is called with the encrypted transport after the handshake.
    """

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext, host: str, *, timeout: float) -> None:
        """Args:
        host: the name that is sent and verified: the target's host, or an IP literal.
        timeout: seconds for the handshake; the caller's own deadline should be the shorter one.
        """
        self._protocol = protocol
        self._context = context
        self._host = host.rstrip(".")
        self._timeout = timeout
        self._plain: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None  # of asyncio's TLS
        self._failure: Exception | None = None

    async def handshake(self) -> None:
        """Wait for the end of the handshake. A caller that stops waiting must abort the plain transport.

        Raises:
            OSError: the handshake failed (`ssl.SSLError`), or the stream ended.
        """
        if self._done is not None:
            await self._done
        elif self._failure is not None:
            raise self._failure
        elif self._plain is None:
            raise ConnectionError("the dialer connected no stream")
        else:
            await self._over_uvloop(self._plain)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)
        if _is_uvloops(plain):
            self._plain = plain
            return
        loop = asyncio.get_running_loop()
        self._done = done = loop.create_future()
        # Marks the exception as retrieved: if the dial itself fails, no caller awaits the future.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        tls = _ClientTls(
            loop,
            self._protocol,
            self._context,
            done,
            server_side=False,
            server_hostname=self._host,
            ssl_handshake_timeout=self._timeout,  # type: ignore[arg-type]  # a float works as well
            ssl_shutdown_timeout=CLOSE_TIMEOUT,
        )
        plain.set_protocol(tls)
        tls.connection_made(plain)

    # Between the opening of the stream and the handshake; an upstream sends nothing before the client's first message.

    def data_received(self, data: bytes) -> None:
        self._failure = ssl.SSLError("bytes before the handshake")
        if self._plain is not None:
            self._plain.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = self._failure or exc or ConnectionResetError("the stream ended before the handshake")

    async def _over_uvloop(self, plain: asyncio.Transport) -> None:
        encrypted = await asyncio.get_running_loop().start_tls(
            plain,
            self._protocol,
            self._context,
            server_hostname=self._host,
            ssl_handshake_timeout=self._timeout,
            ssl_shutdown_timeout=CLOSE_TIMEOUT,
        )
        if encrypted is None or plain.is_closing():
            raise ConnectionResetError("the stream ended in the handshake")
        # uvloop passes the first data in a later turn of the loop than the end of the handshake.
        plain.set_protocol(cast(asyncio.BaseProtocol, _LastBytes(plain, encrypted)))
        self._protocol.connection_made(encrypted)


def _is_uvloops(transport: asyncio.Transport) -> bool:
    uvloop: Any = sys.modules.get("uvloop.loop")
    return uvloop is not None and isinstance(transport, (uvloop.TCPTransport, uvloop.UnixTransport))


class _LastBytes:
    """Between a transport of uvloop and its TLS: nothing that the upstream has sent is lost at the end of the stream.

    At the end of the stream, uvloop's TLS drops what it has received but not decrypted because its reader pauses; and
    after a failed write it does not read what waits in the kernel, see `drain`.
    """

    def __init__(self, plain: asyncio.Transport, encrypted: asyncio.Transport) -> None:
        self._plain = plain
        self._encrypted = encrypted
        self._tls = tls = cast(Any, plain.get_protocol())
        self._lost = False
        # Instance attributes, so that the transport calls the TLS without a function of ours between them.
        self.get_buffer = tls.get_buffer
        self.buffer_updated = tls.buffer_updated
        self.pause_writing = tls.pause_writing
        self.resume_writing = tls.resume_writing

    def eof_received(self) -> bool:
        # The reader gets at most what the TLS has buffered, 256 KiB, beyond its own limit. It must get it before the
        # TLS learns of the end: each step of uvloop's TLS is a call that waits in the loop's queue.
        self._encrypted.resume_reading()
        asyncio.get_running_loop().call_soon(self._end)
        return True

    def _end(self) -> None:
        if not self._lost:
            self._tls.eof_received()
            self._plain.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if exc is not None:
            drain(self._plain, lambda data: _feed_buffered(self._tls, data))
        self._tls.connection_lost(exc)
