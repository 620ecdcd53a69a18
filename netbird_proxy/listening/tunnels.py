"""Listeners inside an account's tunnel, on ports 80 and 443. Each port accepts both HTTP and HTTPS."""

from __future__ import annotations

from netbird_proxy.api.model import Address
from netbird_proxy.api.tunnels import Tunnel, TunnelListener
from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.peek import Peek
from netbird_proxy.listening.tls import ServerTls

HTTP_PORT, HTTPS_PORT = 80, 443


class InsideListener:
    """The listeners of a tunnel, with the connections that they accepted.

    Attributes:
        address: the overlay address that peers connect to.
        https: true if a certificate is configured, so that HTTPS is served.
    """

    def __init__(
        self, tunnel: Tunnel, listeners: list[TunnelListener], connections: Connections, *, https: bool
    ) -> None:
        self._listeners = listeners
        self._connections = connections
        self.address = tunnel.addresses[0]
        self.addresses = [Address(host, port) for host in tunnel.addresses for port in (HTTP_PORT, HTTPS_PORT)]
        self.https = https

    def close(self) -> None:
        """Stop accepting. Idempotent."""
        for listener in self._listeners:
            listener.close()

    async def drain(self, timeout: float) -> None:
        """End the connections: idle ones now, busy ones after their answer, all after `timeout` seconds."""
        await self._connections.drain(timeout)


async def serve_inside(connections: Connections, tunnel: Tunnel, *, tls: ServerTls | None) -> InsideListener:
    """Listen in a tunnel that is up. On a failure, listeners that were opened before are closed."""
    listeners: list[TunnelListener] = []
    try:
        for port in (HTTPS_PORT, HTTP_PORT):
            listener = await tunnel.listen(port, lambda: Peek(connections, tls))
            listeners.append(listener)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return InsideListener(tunnel, listeners, connections, https=tls is not None)
