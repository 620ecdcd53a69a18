"""TLS towards upstreams, over any asyncio transport: a socket's or a tunnel's.

Both event loops use asyncio's `SSLProtocol`: uvloop's `start_tls` refuses transports that are not its own.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from asyncio.sslproto import SSLProtocol

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
        while data:
            buffer = self.get_buffer(len(data))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.buffer_updated(size)
            data = data[size:]


def client_tls(
    protocol: asyncio.Protocol, context: ssl.SSLContext, host: str, *, handshake_timeout: float
) -> tuple[asyncio.BaseProtocol, asyncio.Future[None]]:
    """A protocol for the dialer in place of `protocol`, and a future for the end of the handshake.

    `protocol.connection_made` is called with the encrypted transport after the handshake. The future raises
    `ssl.SSLError`, or OSError if the stream ended. A caller that stops waiting must abort the plain transport.

    Args:
        host: the name that is sent and verified: the target's host, or an IP literal.
        handshake_timeout: seconds; the caller's own deadline should be the shorter one.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    # Marks the exception as retrieved: if the dial itself fails, no caller awaits the future.
    done.add_done_callback(lambda future: future.cancelled() or future.exception())
    outer = _ClientTls(
        loop,
        protocol,
        context,
        done,
        server_side=False,
        server_hostname=host.rstrip("."),
        ssl_handshake_timeout=handshake_timeout,  # type: ignore[arg-type]  # a float works as well
        ssl_shutdown_timeout=CLOSE_TIMEOUT,
    )
    return outer, done
