"""TLS towards upstreams, over any asyncio transport: a socket's and a tunnel's alike.

asyncio's own `SSLProtocol` under both event loops: uvloop's `start_tls` refuses transports that are not its own.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from asyncio.sslproto import SSLProtocol

from netbird_proxy.upstreams.kernel import drain

CLOSE_TIMEOUT = 2.0
"""Seconds that a closed connection waits for the upstream's own goodbye."""


@functools.lru_cache(256)
def client_context(*, skip_verify: bool = False, ca: str = "") -> ssl.SSLContext:
    """The context for upstreams: the system's roots, `ca` alone where it is given, or none.

    Loading the system's roots takes some 20 ms, so contexts are kept.
    """
    context = ssl.create_default_context(cadata=ca or None)
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


class _ClientTls(SSLProtocol):
    """TLS whose last bytes are read although a write failed; see `drain`."""

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
    """What to give a dialer in place of `protocol`, and a future that is done when the handshake is.

    `protocol.connection_made` is called with the encrypted transport after the handshake. The future raises what went
    wrong: `ssl.SSLError`, or an OSError where the stream ended. Whoever gives up must abort the plain transport.

    Args:
        host: the name that is sent and verified: the target's host, or an IP literal.
        handshake_timeout: seconds; the caller's own deadline should be the shorter one.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    # Unset where the dial itself failed: nobody need have asked for it.
    done.add_done_callback(lambda future: future.cancelled() or future.exception())
    outer = _ClientTls(
        loop,
        protocol,
        context,
        done,
        server_side=False,
        server_hostname=host.rstrip("."),
        ssl_handshake_timeout=handshake_timeout,  # type: ignore[arg-type]  # any number of seconds will do
        ssl_shutdown_timeout=CLOSE_TIMEOUT,
    )
    return outer, done
